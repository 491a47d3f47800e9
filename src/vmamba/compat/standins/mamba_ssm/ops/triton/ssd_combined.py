"""Mamba-2's scan."""

from vmamba.compat.mamba2 import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined

__all__ = ["mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"]
