"""The scans in Triton, for GPUs of NVIDIA, AMD and Intel. Compiled when first used; nothing is built at install.

The kernels are in `ss2d_scan`, `selective_scan` and their `_backward`. They keep state, Δ and sums in float32 for
float32, bfloat16 and float16 storage; float64 is left to `chunked`. The backward pass recomputes the states, and adds
partial sums in a fixed order instead of using atomics: the same inputs give the same gradients, bit for bit.

Under ``TRITON_INTERPRET=1`` the same kernels run, slowly, on CPU tensors. That is how they are tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vmamba.ops.backends import chunked
from vmamba.ops.backends.triton import selective_scan as selective_kernels
from vmamba.ops.backends.triton import selective_scan_backward as selective_backward_kernels
from vmamba.ops.backends.triton import ss2d_scan as ss2d_kernels
from vmamba.ops.backends.triton import ss2d_scan_backward as ss2d_backward_kernels
from vmamba.ops.backends.triton.tiles import INTERPRETED


def describe() -> str:
    """One line about what runs: ``vmamba env`` shows it."""
    return f"kernels of Triton {triton.__version__}, " + ("in the interpreter" if INTERPRETED else "compiled when used")


def _runs(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors, or their dtypes are left to `chunked`.

    Raises:
        ValueError: For tensors on a device that the kernels do not run on.
    """
    if tensors[0].device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            "the triton kernels run on a GPU, the operands are on cpu; move them, choose another backend, "
            "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
        )
    return all(t.dtype in (torch.float32, torch.bfloat16, torch.float16) for t in tensors)


def ss2d_scan(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str) -> Tensor:
    """See `vmamba.ops.ss2d_scan`."""
    scan = ss2d_kernels.ss2d_scan if _runs(x, dbc) else chunked.ss2d_scan
    return scan(x, dbc, dt_weight, A, D, dt_bias, pattern)


def ss2d_scan_backward(
    dy: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias); that of x in its own dtype."""
    scan_backward = ss2d_backward_kernels.ss2d_scan_backward if _runs(x, dbc) else chunked.ss2d_scan_backward
    return scan_backward(dy, x, dbc, dt_weight, A, D, dt_bias, pattern)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """See `vmamba.ops.selective_scan`; B and C are ``(B, G, N, L)`` here."""
    scan = selective_kernels.selective_scan if _runs(u, delta, B, C) else chunked.selective_scan
    return scan(u, delta, A, B, C, D, delta_bias, delta_softplus)


def selective_scan_backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (u, delta, A, B, C, D, delta_bias); those of u and delta in their own dtypes."""
    fits = _runs(u, delta, B, C)
    scan_backward = selective_backward_kernels.selective_scan_backward if fits else chunked.selective_scan_backward
    return scan_backward(dy, dlast, u, delta, A, B, C, D, delta_bias, delta_softplus)
