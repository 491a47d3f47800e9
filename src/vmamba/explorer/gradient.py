"""Gradients as operators that every runtime has: what PyTorch's exporter has no words for, in words that it has.

For one image size: the recurrences are computed in log₂(L) steps over all L tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops.private_torch import decompositions
from vmamba.ops.routes import routes

Gradients = tuple[Tensor | None, ...]


def gradient_decompositions() -> dict[Any, Callable[..., Any]]:
    """Operations for `torch.fx.experimental.proxy_tensor.make_fx` to put in the place of backward operators."""
    aten = torch.ops.aten
    pytorch = (
        aten.native_layer_norm_backward,
        aten.gelu_backward,
        aten.silu_backward,
        aten.sigmoid_backward,
        aten.threshold_backward,
        aten._softmax_backward_data,
    )
    return {
        **decompositions(pytorch),
        aten.convolution_backward.default: convolution_gradient,
        torch.ops.vmamba.ss2d_scan_backward.default: scan_gradient,
    }


def convolution_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Gradients:
    """``aten.convolution_backward`` for x alone: a transposed convolution."""
    reached = [
        (size - 1) * step - 2 * pad + spread * (kernel - 1) + 1
        for size, step, pad, spread, kernel in zip(
            dy.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    missing = [size - reach for size, reach in zip(x.shape[2:], reached, strict=True)]
    dx = torch.ops.aten.convolution(dy, weight, None, stride, padding, dilation, True, missing, groups)
    return dx, None, None


def scan_gradient(
    dy: Tensor,
    x: Tensor,
    dbc: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    pattern: str,
    backend: str | None = None,
) -> Gradients:
    """``vmamba::ss2d_scan_backward`` for x and dbc of a single image; arguments as there.

    With a = exp(Δ A) and λ for the gradient of the state h, both recurrences have one form::

        h[t] = a[t] h[t-1] + Δ[t] x[t] b[t]        λ[t] = a[t+1] λ[t+1] + c[t] dy[t]
    """
    height, width = x.shape[1:3]
    rank, states = dt_weight.shape[2], A.shape[2]
    chosen = routes(pattern)
    steps = chosen[0].line_length(height, width)  # between two starts from a zero state

    def travel(maps: Sequence[Tensor]) -> Tensor:
        """One map (H, W, C) for every route, in the order of the visit: (K, lines, steps, C)."""
        visits = [(m.transpose(0, 1) if route.columns else m) for m, route in zip(maps, chosen, strict=True)]
        visits = [v.reshape(-1, v.shape[-1]) for v in visits]
        visits = [v.flip(0) if route.backward else v for v, route in zip(visits, chosen, strict=True)]
        return torch.stack(visits).view(len(chosen), -1, steps, maps[0].shape[-1])

    def back(visits: Tensor) -> list[Tensor]:
        """The inverse of `travel`."""
        maps = [v.reshape(height * width, -1) for v in visits.unbind()]
        maps = [m.flip(0) if route.backward else m for m, route in zip(maps, chosen, strict=True)]
        return [
            m.view(width, height, -1).transpose(0, 1) if route.columns else m.view(height, width, -1)
            for m, route in zip(maps, chosen, strict=True)
        ]

    xs, dys = travel([x[0]] * len(chosen)), travel([dy[0]] * len(chosen))
    low_rank, b, c = travel(dbc[0].unbind(2)).split([rank, states, states], dim=-1)
    z = low_rank @ dt_weight.transpose(1, 2)[:, None] + dt_bias[:, None, None]
    delta = F.softplus(z)  # (K, lines, steps, D)
    rate, b, c = A[:, None, None], b[..., None, :], c[..., None, :]

    a = torch.exp(delta[..., None] * rate)  # (K, lines, steps, D, N)
    h = recurrence(a, (delta * xs)[..., None] * b)
    adjoint = recurrence(_later(a).flip(2), (dys[..., None] * c).flip(2)).flip(2)

    d_drive = (adjoint * b).sum(-1)  # with respect to Δ x
    d_delta = d_drive * xs + (adjoint * _earlier(h) * a * rate).sum(-1)
    dz = d_delta * torch.sigmoid(z)
    db, dc = (adjoint * (delta * xs)[..., None]).sum(3), (h * dys[..., None]).sum(3)
    d_dbc = torch.cat([dz @ dt_weight[:, None], db, dc], dim=-1)
    dx = torch.stack(back(d_drive * delta + dys * D[:, None, None])).sum(0)
    return dx[None], torch.stack(back(d_dbc), dim=2)[None], None, None, None, None


def recurrence(a: Tensor, u: Tensor) -> Tensor:
    """``h[t] = a[t] h[t-1] + u[t]`` along the third axis, from zero, in log₂ steps; (K, lines, steps, D, N).

    After the step of length s, u[t] is what the last 2s tokens give, and a[t] the decay over as many. Source: Hillis
    and Steele, "Data parallel algorithms", 1986. Nothing is divided by a decay.
    """
    length, s = a.shape[2], 1
    while s < length:
        u = u + a * _earlier(u, s)
        if 2 * s < length:
            a = a * _earlier(a, s)
        s *= 2
    return u


def _earlier(t: Tensor, steps: int = 1) -> Tensor:
    """Values of `steps` tokens before, zero where there are none."""
    return torch.cat([torch.zeros_like(t[:, :, :steps]), t[:, :, :-steps]], dim=2)


def _later(t: Tensor) -> Tensor:
    """Values of the next token, zero where there is none."""
    return torch.cat([t[:, :, 1:], torch.zeros_like(t[:, :, :1])], dim=2)
