"""Mamba-2's norm with a gate."""

from vmamba.compat.mamba2 import RMSNorm, rmsnorm_fn

__all__ = ["RMSNorm", "rmsnorm_fn"]
