"""The inference form of models: `freeze`."""

from vmamba.frozen.model import freeze

__all__ = ["freeze"]
