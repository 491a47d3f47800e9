"""Looking inside models: arrays first, one file (`draw`) makes the pictures."""

from vmamba.analysis.activation import class_activation, dependence_map, similarity_map
from vmamba.analysis.attention import Scan, attention_rows, block_scans, ss2d_layers
from vmamba.analysis.cost import LayerCost, cost
from vmamba.analysis.erf import ReceptiveField, receptive_field
from vmamba.analysis.models import load_model
from vmamba.analysis.steps import Step, StepResult, acceleration_steps, measure_steps
from vmamba.analysis.throughput import Speed, Timing, alternate, environment, measure, peak_memory

__all__ = [
    "LayerCost",
    "ReceptiveField",
    "Scan",
    "Speed",
    "Step",
    "StepResult",
    "Timing",
    "acceleration_steps",
    "alternate",
    "attention_rows",
    "block_scans",
    "class_activation",
    "cost",
    "dependence_map",
    "environment",
    "load_model",
    "measure",
    "measure_steps",
    "peak_memory",
    "receptive_field",
    "similarity_map",
    "ss2d_layers",
]
