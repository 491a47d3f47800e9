"""`selective_scan_cuda_oflex`, VMamba's extension that returns float32 for half-precision inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.compat import extensions

__all__ = ["bwd", "fwd"]


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
    out_float: bool,
) -> list[Tensor]:
    """[output, float32 with `out_float`; intermediate states]; `nrows` changes no result."""
    half = u.dtype in (torch.float16, torch.bfloat16)
    out_dtype = torch.float32 if out_float and half else u.dtype
    return [*extensions.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, out_dtype)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """Gradients for (u, delta, A, B, C, D, delta_bias), each of its operand's dtype."""
    return extensions.backward(u, delta, A, B, C, D, delta_bias, dout, delta_softplus)
