"""Looking inside models: arrays first, one file (`draw`) makes the pictures."""

from vmamba.analysis.attention import Scan, attention_rows, block_scans, ss2d_layers
from vmamba.analysis.cost import LayerCost, cost
from vmamba.analysis.models import load_model

__all__ = [
    "LayerCost",
    "Scan",
    "attention_rows",
    "block_scans",
    "cost",
    "load_model",
    "ss2d_layers",
]
