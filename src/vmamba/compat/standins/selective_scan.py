"""`selective_scan`, the package of VMamba's first version."""

from vmamba.compat.selective_scan_interface import selective_scan_v1_fn as selective_scan_fn
from vmamba.compat.selective_scan_interface import selective_scan_v1_ref as selective_scan_ref

__all__ = ["selective_scan_fn", "selective_scan_ref"]
