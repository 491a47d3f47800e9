"""The scans in Triton, for GPUs of NVIDIA, AMD and Intel. Compiled when first used; nothing is built at install.

The kernels are in `triton_ss2d`, `triton_ss2d_backward` and `triton_selective`. They keep state, Δ and sums in float32
for float32, bfloat16 and float16 storage; float64 is left to `chunked`. The backward pass recomputes the states, and
adds partial sums in a fixed order instead of using atomics: the same inputs give the same gradients, bit for bit.

Under ``TRITON_INTERPRET=1`` the same kernels run, slowly, on CPU tensors. That is how they are tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from vmamba.ops import chunked, triton_ss2d
from vmamba.ops.chunked import selective_scan, selective_scan_backward
from vmamba.ops.triton_tiles import INTERPRETED

__all__ = ["describe", "selective_scan", "selective_scan_backward", "ss2d_scan", "ss2d_scan_backward"]


def describe() -> str:
    """One line about what runs: ``vmamba env`` shows it."""
    return f"kernels of Triton {triton.__version__}, " + ("in the interpreter" if INTERPRETED else "compiled when used")


def _runs(x: Tensor) -> bool:
    """Whether the kernels take x, or its dtype is left to `chunked`.

    Raises:
        ValueError: For a tensor on a device that the kernels do not run on.
    """
    if x.device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            "the triton kernels run on a GPU, the operands are on cpu; move them, choose another backend, "
            "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
        )
    return x.dtype != torch.float64


def ss2d_scan(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str) -> Tensor:
    """See `vmamba.ops.ss2d_scan`."""
    scan = triton_ss2d.ss2d_scan if _runs(x) else chunked.ss2d_scan
    return scan(x, dbc, dt_weight, A, D, dt_bias, pattern)


def ss2d_scan_backward(
    dy: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), in the accumulation dtype."""
    return chunked.ss2d_scan_backward(dy, x, dbc, dt_weight, A, D, dt_bias, pattern)
