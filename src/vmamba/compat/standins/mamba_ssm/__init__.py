"""`mamba_ssm`, what vision networks use of it."""

from vmamba.compat.mamba_simple import Mamba
from vmamba.compat.selective_scan_interface import mamba_inner_fn, selective_scan_fn

__version__ = "0+vmamba"
__all__ = ["Mamba", "mamba_inner_fn", "selective_scan_fn"]
