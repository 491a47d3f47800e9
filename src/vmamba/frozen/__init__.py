"""The inference form of models, `freeze`, and its error, `compare`."""

from vmamba.frozen.comparison import Comparison, compare
from vmamba.frozen.model import freeze

__all__ = ["Comparison", "compare", "freeze"]
