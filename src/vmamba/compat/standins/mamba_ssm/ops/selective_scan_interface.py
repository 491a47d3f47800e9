"""The selective scan."""

from vmamba.compat.selective_scan_interface import (
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    selective_scan_fn,
    selective_scan_ref,
)

__all__ = ["mamba_inner_fn", "mamba_inner_fn_no_out_proj", "selective_scan_fn", "selective_scan_ref"]
