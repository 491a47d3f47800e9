"""The scans: mathematics on tensors, in several implementations behind one operator each."""

from vmamba.ops.backends import BACKENDS, decomposed, select, use_backend
from vmamba.ops.convolution import convolution
from vmamba.ops.depthwise_silu import depthwise_silu
from vmamba.ops.packed import (
    PRECISIONS,
    for_packed,
    pack_convolution,
    pack_linear,
    packed_block,
    packed_convolution,
    packed_linear,
)
from vmamba.ops.pointwise import pointwise, pointwise_branch
from vmamba.ops.scan_routes import scan_routes
from vmamba.ops.selective_scan import selective_scan
from vmamba.ops.ss2d_scan import ss2d_scan

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "convolution",
    "decomposed",
    "depthwise_silu",
    "for_packed",
    "pack_convolution",
    "pack_linear",
    "packed_block",
    "packed_convolution",
    "packed_linear",
    "pointwise",
    "pointwise_branch",
    "scan_routes",
    "select",
    "selective_scan",
    "ss2d_scan",
    "use_backend",
]
