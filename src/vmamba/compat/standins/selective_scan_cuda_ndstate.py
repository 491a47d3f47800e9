"""`selective_scan_cuda_ndstate`, VMamba's extension for a single state: A (D,), B and C (B, G, L)."""

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
    """[output, intermediate states]; `nrows` changes no result."""
    A, B, C = A.unsqueeze(1), B.unsqueeze(2), C.unsqueeze(2)
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
    A, B, C = A.unsqueeze(1), B.unsqueeze(2), C.unsqueeze(2)
    grads = extensions.backward(u, delta, A, B, C, D, delta_bias, dout, delta_softplus)
    du, ddelta, dA, dB, dC, dD, dbias = grads
    assert dA is not None and dB is not None and dC is not None  # noqa: PT018
    return [du, ddelta, dA.squeeze(1), dB.squeeze(2), dC.squeeze(2), dD, dbias]
