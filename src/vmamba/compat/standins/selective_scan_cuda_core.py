"""`selective_scan_cuda_core`, VMamba's extension without gate and constant B and C, with our operator inside."""

from __future__ import annotations

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
) -> list[Tensor]:
    """[output, intermediate states]; `nrows` tunes their kernel and changes no result."""
    return [*extensions.forward(u, delta, A, B, C, D, delta_bias, delta_softplus)]


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
    """Gradients for (u, delta, A, B, C, D, delta_bias)."""
    return extensions.backward(u, delta, A, B, C, D, delta_bias, dout, delta_softplus)
