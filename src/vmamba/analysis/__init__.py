"""Looking inside models: arrays first, one file (`draw`) makes the pictures."""

from vmamba.analysis.activation import class_activation, dependence_map, similarity_map
from vmamba.analysis.attention import Scan, attention_rows, block_scans, ss2d_layers
from vmamba.analysis.cost import LayerCost, cost
from vmamba.analysis.erf import ReceptiveField, receptive_field
from vmamba.analysis.models import load_model

__all__ = [
    "LayerCost",
    "ReceptiveField",
    "Scan",
    "attention_rows",
    "block_scans",
    "class_activation",
    "cost",
    "dependence_map",
    "load_model",
    "receptive_field",
    "similarity_map",
    "ss2d_layers",
]
