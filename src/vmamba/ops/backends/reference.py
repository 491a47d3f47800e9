"""The definition: one plain loop over the tokens, and its adjoint. Slow, and the truth for everything else.

Forward and adjoint of one route (``Δ = softplus(raw)``, all products elementwise over channels and states)::

    h[t] = exp(Δ[t] A) h[t-1] + Δ[t] x[t] b[t]          y[t] = Σ_n c[t] h[t] + D x[t]
    g[t] = c[t] dy[t] + exp(Δ[t+1] A) g[t+1]            (the gradient of the loss with respect to h[t])

Source: Gu and Dao, "Mamba", 2023 (the recurrence); Liu et al., "VMamba", NeurIPS 2024 (the routes).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops.operands import (
    SelectiveScanGradients,
    SelectiveScanOperands,
    SS2DGradients,
    SS2DOperands,
    accumulation_dtype,
)
from vmamba.ops.routes import Route, routes


def describe() -> str:
    """One line about what runs: ``vmamba env`` shows it."""
    return "the definition, a loop over the tokens"


def selective_scan(operands: SelectiveScanOperands) -> tuple[Tensor, Tensor]:
    """See `vmamba.ops.selective_scan`; B and C are ``(B, G, N, L)`` here. Returns y like u and the last state."""
    u, delta, A, B, C, D, delta_bias, delta_softplus, _ = operands
    dtype = accumulation_dtype(u.dtype)
    out_dtype, channels = u.dtype, u.shape[1]
    u, A = u.to(dtype), A.to(dtype)
    delta = _step_size(delta.to(dtype), delta_bias, delta_softplus)
    B, C = _per_channel(B.to(dtype), channels), _per_channel(C.to(dtype), channels)  # (B, D, N, L)

    state = u.new_zeros(u.shape[0], channels, A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = torch.exp(step * A) * state + step * u[:, :, t, None] * B[..., t]
        outputs.append((state * C[..., t]).sum(-1))
    y = torch.stack(outputs, dim=2)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u
    return y.to(out_dtype), state


def selective_scan_backward(dy: Tensor, dlast: Tensor, operands: SelectiveScanOperands) -> SelectiveScanGradients:
    """Gradients of `selective_scan` for (u, delta, A, B, C, D, delta_bias), each in its accumulation dtype."""
    u, delta, A, B, C, D, delta_bias, delta_softplus, _ = operands
    dtype = accumulation_dtype(u.dtype)
    groups, channels = B.shape[1], u.shape[1]
    dy, u, A = dy.to(dtype), u.to(dtype), A.to(dtype)
    delta = _step_size(delta.to(dtype), delta_bias, delta_softplus)
    B, C = _per_channel(B.to(dtype), channels), _per_channel(C.to(dtype), channels)

    states = [u.new_zeros(u.shape[0], channels, A.shape[1])]
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        states.append(torch.exp(step * A) * states[-1] + step * u[:, :, t, None] * B[..., t])

    du, ddelta = torch.zeros_like(u), torch.zeros_like(u)
    dA, dB, dC = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
    adjoint = dlast.to(dtype)
    for t in reversed(range(u.shape[2])):
        step, x = delta[:, :, t, None], u[:, :, t, None]
        adjoint = adjoint + C[..., t] * dy[:, :, t, None]
        decay = torch.exp(step * A)
        through_decay = adjoint * decay * states[t]
        dC[..., t] = dy[:, :, t, None] * states[t + 1]
        dB[..., t] = adjoint * step * x
        du[:, :, t] = (adjoint * step * B[..., t]).sum(-1)
        ddelta[:, :, t] = (adjoint * x * B[..., t] + through_decay * A).sum(-1)
        dA += (through_decay * step).sum(0)
        adjoint = adjoint * decay

    dD = (dy * u).sum((0, 2))
    if D is not None:
        du = du + D.to(dtype)[:, None] * dy
    if delta_softplus:
        ddelta = ddelta * -torch.expm1(-delta)  # softplus' in terms of its value
    return du, ddelta, dA, _per_group(dB, groups), _per_group(dC, groups), dD, ddelta.sum((0, 2))


def ss2d_scan(operands: SS2DOperands) -> Tensor:
    """See `vmamba.ops.ss2d_scan`."""
    x = operands.x
    y = torch.zeros_like(x, dtype=accumulation_dtype(x.dtype))
    for k, route in enumerate(routes(operands.pattern)):
        out, _ = selective_scan(_along(route, k, operands))
        y = y + _to_image(route, out, x.shape)
    return y.to(x.dtype)


def ss2d_scan_backward(dy: Tensor, operands: SS2DOperands) -> SS2DGradients:
    """Gradients of `ss2d_scan` for (x, dbc, dt_weight, A, D, dt_bias), each in the accumulation dtype."""
    x, dbc, dt_weight, A = operands[:4]
    dtype = accumulation_dtype(x.dtype)
    rank = dt_weight.shape[2]
    dx = torch.zeros_like(x, dtype=dtype)
    per_route = []
    for k, route in enumerate(routes(operands.pattern)):
        dout = _to_route(route, dy.to(dtype))
        dlast = dout.new_zeros(dout.shape[0], dout.shape[1], A.shape[2])
        du, ddelta, dA, dB, dC, dD, dbias = selective_scan_backward(dout, dlast, _along(route, k, operands))
        dx = dx + _to_image(route, du, x.shape)
        low_rank = _to_route(route, dbc[:, :, :, k, :rank].to(dtype))
        ddbc = torch.cat([torch.einsum("bdl,dr->brl", ddelta, dt_weight[k].to(dtype)), dB[:, 0], dC[:, 0]], dim=1)
        ddt_weight = torch.einsum("bdl,brl->dr", ddelta, low_rank)
        per_route.append((_to_image(route, ddbc, x.shape), ddt_weight, dA, dD, dbias))
    stacked = [list(grads) for grads in zip(*per_route, strict=True)]
    ddt_weight, dA, dD, dbias = (torch.stack(grads) for grads in stacked[1:])
    return dx, torch.stack(stacked[0], dim=3), ddt_weight, dA, dD, dbias


def _step_size(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    if bias is not None:
        delta = delta + bias.to(delta.dtype)[:, None]
    return F.softplus(delta) if softplus else delta


def _per_channel(t: Tensor, channels: int) -> Tensor:
    """(B, G, N, L) → (B, D, N, L): the channels of a group share its B and C."""
    return t.repeat_interleave(channels // t.shape[1], dim=1)


def _per_group(grad: Tensor, groups: int) -> Tensor:
    """(B, D, N, L) → (B, G, N, L), the adjoint of `_per_channel`."""
    return grad.unflatten(1, (groups, -1)).sum(2)


def _to_route(route: Route, t: Tensor) -> Tensor:
    """(B, H, W, C) image order → (B·lines, C, line length) route order; one line unless the route restarts."""
    height, width = t.shape[1:3]
    t = t.flatten(1, 2)[:, route.order(height, width, t.device)]  # (B, L, C)
    return t.unflatten(1, (-1, route.line_length(height, width))).flatten(0, 1).transpose(1, 2)


def _to_image(route: Route, t: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_to_route`, for a map of ``shape[:3]`` tokens."""
    batch, height, width = shape[:3]
    t = t.transpose(1, 2).reshape(batch, height * width, -1)
    return t[:, route.order(height, width, t.device).argsort()].unflatten(1, (height, width))


def _along(route: Route, k: int, operands: SS2DOperands) -> SelectiveScanOperands:
    """The scan of route k as a scan of sequences."""
    x, dbc, dt_weight, A, D, dt_bias = operands[:6]
    dtype = accumulation_dtype(x.dtype)
    rank = dt_weight.shape[2]
    u, sequence = _to_route(route, x.to(dtype)), _to_route(route, dbc[:, :, :, k].to(dtype))  # (B, D, L), (B, R+2N, L)
    B, C = sequence[:, None, rank:].chunk(2, dim=2)
    delta = torch.einsum("brl,dr->bdl", sequence[:, :rank], dt_weight[k].to(dtype))
    return SelectiveScanOperands(u, delta, A[k], B, C, D[k], dt_bias[k], delta_softplus=True)
