"""`selective_scan_cuda_nrow`, the variant of `selective_scan_cuda_core` that computes several channels a thread."""

from vmamba.compat.standins.selective_scan_cuda_core import bwd, fwd

__all__ = ["bwd", "fwd"]
