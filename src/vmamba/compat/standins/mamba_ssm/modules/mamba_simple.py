"""Mamba's block."""

from vmamba.compat.mamba_simple import Mamba

__all__ = ["Mamba"]
