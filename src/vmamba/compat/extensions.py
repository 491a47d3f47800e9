"""The raw ``fwd`` and ``bwd`` of the compiled selective scans, on our operator.

Shapes, dtypes and order of arguments and results are those of the extension modules' bindings (``state-spaces/mamba``,
``MzeroMiko/VMamba``); their checks are ours. Both functions work on any device and outside autograd, as theirs do.

The intermediate states ``x`` (B, D, ⌈L/2048⌉, 2N) of the extensions serve two purposes: their own backward pass, which
ours does not need, and ``x[:, :, -1, 1::2]``, the last state. That is filled in; the rest is NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops import selective_scan

#: Tokens to which one entry of the intermediate states belongs.
CHUNK = 2048


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan without a gate.

    Args:
        u: (B, D, L).
        delta: (B, D, L), or fewer channels, each for D / channels neighbouring ones; `delta_bias` likewise.
        A: (D, N).
        B: (D, N), (B, N, L) or (B, G, N, L).
        C: Like B.
        D: Skip, (D,).
        delta_bias: (D,).
        delta_softplus: Apply softplus to delta.
        out_dtype: dtype of the output; u's by default.

    Returns:
        Output (B, D, L) and intermediate states.
    """
    with torch.no_grad():
        out, last = selective_scan(
            u if out_dtype is None else u.to(out_dtype),
            _spread(delta, u.shape[1]),
            A,
            B,
            C,
            D,
            delta_bias=None if delta_bias is None else _spread(delta_bias, u.shape[1]),
            delta_softplus=delta_softplus,
            return_last_state=True,
        )
    x = last.new_full((*last.shape[:2], -(-u.shape[2] // CHUNK), 2 * last.shape[2]), float("nan"))
    x[:, :, -1, 1::2] = last
    return out, x


def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    delta_softplus: bool,
) -> list[Tensor | None]:
    """Gradients for (u, delta, A, B, C, D, delta_bias), each of its operand's dtype and shape; None for one absent."""
    channels = u.shape[1]
    groups = _groups(B) if _groups(B) == _groups(C) else channels
    no_state = u.new_zeros((u.shape[0], *A.shape), dtype=torch.float32)
    du, ddelta, dA, dB, dC, dD, dbias = torch.ops.vmamba.selective_scan_backward(
        dout,
        no_state,
        u,
        _spread(delta, channels),
        A,
        _grouped(B, u, groups),
        _grouped(C, u, groups),
        D,
        None if delta_bias is None else _spread(delta_bias, channels),
        delta_softplus,
    )
    return [
        du,
        _spread_adjoint(ddelta, delta),
        dA,
        _grouped_adjoint(dB, B),
        _grouped_adjoint(dC, C),
        None if D is None else dD,
        None if delta_bias is None else _spread_adjoint(dbias, delta_bias),
    ]


def gate(out: Tensor, z: Tensor) -> Tensor:
    """``out · silu(z)``, computed in float32."""
    return (out.float() * F.silu(z.float())).to(out.dtype)


def gate_backward(dout: Tensor, out: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gate` for (out, z)."""
    sigmoid = torch.sigmoid(z.float())
    silu = z.float() * sigmoid
    dz = dout.float() * out.float() * (sigmoid + silu * (1 - sigmoid))
    return (dout.float() * silu).to(out.dtype), dz.to(z.dtype)


def _spread(t: Tensor, channels: int) -> Tensor:
    """Repeat the channels of delta (B, D', L) or its bias (D',) until there are `channels`."""
    dim = t.ndim // 2
    return t if t.shape[dim] == channels else t.repeat_interleave(channels // t.shape[dim], dim)


def _spread_adjoint(grad: Tensor, t: Tensor) -> Tensor:
    dim = t.ndim // 2
    return grad if grad.shape == t.shape else grad.unflatten(dim, (t.shape[dim], -1)).sum(dim + 1)


def _groups(t: Tensor) -> int:
    """Groups of channels with a B or C of their own."""
    return {2: t.shape[0], 3: 1}.get(t.ndim, t.shape[1])


def _grouped(t: Tensor, u: Tensor, groups: int) -> Tensor:
    """B or C in any of its forms as (B, `groups`, N, L)."""
    if t.ndim == 2:
        return t[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    t = t.unsqueeze(1) if t.ndim == 3 else t
    return t if t.shape[1] == groups else t.repeat_interleave(groups // t.shape[1], dim=1)


def _grouped_adjoint(grad: Tensor, t: Tensor) -> Tensor:
    if t.ndim == 2:
        return grad.sum((0, 3))
    grad = grad.unflatten(1, (_groups(t), -1)).sum(2) if grad.shape[1] != _groups(t) else grad
    return grad.squeeze(1) if t.ndim == 3 else grad
