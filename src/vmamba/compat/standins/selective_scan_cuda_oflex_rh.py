"""`selective_scan_cuda_oflex_rh`, Spatial-Mamba's extension that returns the states instead of their sum with C."""

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
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int,
    out_float: bool,
) -> list[Tensor]:
    """[states (B, D, N, L), float32 with `out_float`; intermediate states]; `D` and `nrows` change no result."""
    half = u.dtype in (torch.float16, torch.bfloat16)
    out_dtype = torch.float32 if out_float and half else u.dtype
    operands = _states_as_channels(u, delta, A, B)
    h, x = extensions.forward(*operands, None, _repeated(delta_bias, A), delta_softplus, out_dtype)
    pairs = x.unflatten(1, A.shape).movedim(2, 3)  # (B, D, chunks, N, 2)
    return [h.unflatten(1, A.shape), pairs.flatten(3)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int,
) -> list[Tensor | None]:
    """Gradients for (u, delta, A, B, D, delta_bias), each of its operand's dtype; that for D is zero."""
    states = A.shape[1]
    operands = _states_as_channels(u, delta, A, B)
    bias = _repeated(delta_bias, A)
    du, ddelta, dA, dB, _, _, dbias = extensions.backward(*operands, None, bias, dout.flatten(1, 2), delta_softplus)
    assert du is not None and ddelta is not None and dA is not None and dB is not None  # noqa: PT018
    if states > 1:
        dB = dB.squeeze(2).unflatten(1, (B.shape[1], -1, states)).sum(2)
    return [
        du.unflatten(1, A.shape).sum(2),
        ddelta.unflatten(1, A.shape).sum(2),
        dA.view(A.shape),
        dB.view(B.shape),
        None if D is None else torch.zeros_like(D),
        None if dbias is None else dbias.view(A.shape).sum(1),
    ]


def _states_as_channels(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Operands of a scan in which each of the N states of each channel is a channel, and C is one."""
    channels, states = A.shape
    u, delta = (t.repeat_interleave(states, dim=1) for t in (u, delta))
    if states > 1:  # then neighbouring channels have rows of B of their own
        B = B.repeat_interleave(channels // B.shape[1], dim=1).flatten(1, 2).unsqueeze(2)
    return u, delta, A.reshape(-1, 1), B, torch.ones_like(B)


def _repeated(delta_bias: Tensor | None, A: Tensor) -> Tensor | None:
    return None if delta_bias is None else delta_bias.repeat_interleave(A.shape[1])
