"""The scans in Triton, for GPUs of NVIDIA, AMD and Intel. Compiled when first used; nothing is built at install.

`ss2d_walk_forward` and `ss2d_walk_backward` compute maps that fit a program, of a few states; `ss2d_forward` and
`ss2d_backward` the others; `walk_launch.takes` says which. `selective_forward`, `selective_backward` and
`depthwise_silu` are what their names say. State and Δ are float32 for float32, bfloat16 and float16 storage; float64 is
left to `chunked`. The backward pass recomputes the states, and adds partial sums in a fixed order instead of using
atomics: the same inputs give the same gradients, bit for bit.

Under ``TRITON_INTERPRET=1`` the same kernels run, slowly, on CPU tensors. That is how they are tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vmamba.ops.backends import chunked
from vmamba.ops.backends.triton import selective_backward as selective_backward_kernels
from vmamba.ops.backends.triton import selective_forward as selective_kernels
from vmamba.ops.backends.triton import ss2d_backward as ss2d_backward_kernels
from vmamba.ops.backends.triton import ss2d_forward as ss2d_kernels
from vmamba.ops.backends.triton import ss2d_walk_backward as walk_back_kernels
from vmamba.ops.backends.triton import ss2d_walk_forward as walk_kernels
from vmamba.ops.backends.triton import walk_launch
from vmamba.ops.backends.triton.launch import INTERPRETED
from vmamba.ops.operands import SelectiveScanGradients, SelectiveScanOperands, SS2DGradients, SS2DOperands


def describe() -> str:
    """One line about what runs: ``vmamba env`` shows it."""
    return f"kernels of Triton {triton.__version__}, " + ("in the interpreter" if INTERPRETED else "compiled when used")


def _runs(*tensors: Tensor) -> bool:
    """True if the kernels take these tensors; other dtypes are left to `chunked`.

    Raises:
        ValueError: For tensors on a device that the kernels do not run on.
    """
    if tensors[0].device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            "the triton kernels run on a GPU, the operands are on cpu; move them, choose another backend, "
            "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
        )
    return all(t.dtype in (torch.float32, torch.bfloat16, torch.float16) for t in tensors)


def ss2d_scan(operands: SS2DOperands) -> Tensor:
    """See `vmamba.ops.ss2d_scan`."""
    if not _runs(operands.x, operands.dbc):
        return chunked.ss2d_scan(operands)
    return (walk_kernels if walk_launch.takes(operands) else ss2d_kernels).ss2d_scan(*operands[:7])


def ss2d_scan_backward(dy: Tensor, operands: SS2DOperands) -> SS2DGradients:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias); that of x in its own dtype."""
    if not _runs(operands.x, operands.dbc):
        return chunked.ss2d_scan_backward(dy, operands)
    kernels = walk_back_kernels if walk_launch.takes(operands, backward=True) else ss2d_backward_kernels
    return kernels.ss2d_scan_backward(dy, *operands[:7])


def selective_scan(operands: SelectiveScanOperands) -> tuple[Tensor, Tensor]:
    """See `vmamba.ops.selective_scan`; B and C are ``(B, G, N, L)`` here."""
    if not _runs(operands.u, operands.delta, operands.B, operands.C):
        return chunked.selective_scan(operands)
    return selective_kernels.selective_scan(*operands[:8])


def selective_scan_backward(dy: Tensor, dlast: Tensor, operands: SelectiveScanOperands) -> SelectiveScanGradients:
    """Gradients for (u, delta, A, B, C, D, delta_bias); those of u and delta in their own dtypes."""
    if not _runs(operands.u, operands.delta, operands.B, operands.C):
        return chunked.selective_scan_backward(dy, dlast, operands)
    return selective_backward_kernels.selective_scan_backward(dy, dlast, *operands[:8])
