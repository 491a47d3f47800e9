"""Looking inside models: arrays first, one file (`draw`) makes the pictures."""

from vmamba.analysis.cost import LayerCost, cost
from vmamba.analysis.models import load_model

__all__ = ["LayerCost", "cost", "load_model"]
