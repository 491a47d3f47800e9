"""The scans in portable PyTorch: any device, no compiler, no Python loop over the L tokens.

A sequence of L tokens is laid out as C chunks of T tokens, both about √L. The recurrence is associative, so

1. the end state of every chunk is computed from a zero start, all chunks at once (T steps);
2. the start states follow from the end states and the chunks' whole decays ``exp(A ΣΔ)`` (C steps);
3. every chunk runs again from its start state, all at once, and its outputs are read off (T steps).

Nothing is ever divided by a decay, so any Δ is stable. The backward pass recomputes the states from the inputs, then
runs the same three steps in the opposite direction for the adjoint.

On an image the chunks are the rows or columns of the grid itself: a route is a (possibly transposed) *view* of the
image and a direction of travel, and no feature is copied along it. States are handled one at a time, so memory does
not grow with N.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

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
    return "PyTorch's own operations, on any device"


#: Grids longer than this many times their width are laid out afresh as a square of chunks (one gather per route).
MAX_ASPECT = 64


# --------------------------------------------------------------------------------------------------------------------
# One route. Shapes: x, delta, y, dy (B, C, T, *E) with E the channels; A (*E, N); b, c (B, C, T, *1, N).


def _travel(length: int, backward: bool) -> Iterable[int]:
    return reversed(range(length)) if backward else range(length)


def _chunk_starts(end: Tensor, decay: Tensor, backward: bool, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Start state of every chunk, and the state after the last, from end states and whole decays (B, C, *E)."""
    starts = torch.empty_like(end)
    state = torch.zeros_like(end[:, 0]) if first is None else first
    for chunk in _travel(end.shape[1], backward):
        starts[:, chunk] = state
        state = torch.addcmul(end[:, chunk], decay[:, chunk], state)
    return starts, state


def _start_states(decay: Tensor, drive: Tensor, whole: Tensor, backward: bool, carry: bool) -> tuple[Tensor, Tensor]:
    """Steps 1 and 2: the state before every chunk, and the one after the last chunk."""
    order = list(_travel(drive.shape[2], backward))
    if not carry:
        return torch.zeros_like(whole), torch.zeros_like(whole[:, 0])
    end = drive[:, :, order[0]]
    for t in order[1:]:
        end = torch.addcmul(drive[:, :, t], decay[:, :, t], end)
    return _chunk_starts(end, whole, backward)


def _scan_forward(
    y: Tensor, x: Tensor, delta: Tensor, A: Tensor, b: Tensor, c: Tensor, backward: bool, carry: bool
) -> Tensor:
    """Add ``Σ_n c h`` to y in place; returns the last state (B, *E, N)."""
    weighted = delta * x
    whole_delta = delta.sum(2)
    last = []
    for n in range(A.shape[-1]):
        decay = torch.exp_(delta * A[..., n])
        drive = weighted * b[..., n]
        state, final = _start_states(decay, drive, torch.exp_(whole_delta * A[..., n]), backward, carry)
        for t in _travel(x.shape[2], backward):
            state = torch.addcmul(drive[:, :, t], decay[:, :, t], state)
            y[:, :, t].addcmul_(c[:, :, t, ..., n], state)
        last.append(final)
    return torch.stack(last, dim=-1)


def _scan_backward(
    dy: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    b: Tensor,
    c: Tensor,
    backward: bool,
    carry: bool,
    dlast: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (x, delta, A, b, c); dlast (B, *E, N) is the gradient of the last state."""
    weighted = delta * x
    whole_delta = delta.sum(2)
    dweighted, ddelta = torch.zeros_like(delta), torch.zeros_like(delta)
    dA, db, dc = torch.zeros_like(A), torch.zeros_like(b), torch.zeros_like(c)
    channel_dims = tuple(i for i in range(3, b.ndim - 1) if b.shape[i] == 1)
    steps = x.shape[2]
    for n in range(A.shape[-1]):
        a, b_n, c_n = A[..., n], b[..., n], c[..., n]
        decay = torch.exp_(delta * a)
        drive = weighted * b_n
        whole = torch.exp_(whole_delta * a)

        # The states again: carried[t] = decay[t] h[t-1], then h = carried + drive.
        state, _ = _start_states(decay, drive, whole, backward, carry)
        carried = torch.empty_like(drive)
        for t in _travel(steps, backward):
            torch.mul(decay[:, :, t], state, out=carried[:, :, t])
            state = carried[:, :, t] + drive[:, :, t]
        dc[..., n] = _reduce(dy * (carried + drive), channel_dims)

        # The adjoint g[t] = c[t] dy[t] + decay[t+1] g[t+1], against the route; `pushed` is decay[t] g[t].
        adjoint = dy * c_n
        pushed = torch.zeros_like(whole)
        if carry:
            for t in _travel(steps, not backward):
                pushed = decay[:, :, t] * (adjoint[:, :, t] + pushed)
            pushed, _ = _chunk_starts(pushed, whole, not backward, None if dlast is None else dlast[..., n])
        for t in _travel(steps, not backward):
            adjoint[:, :, t] += pushed
            pushed = decay[:, :, t] * adjoint[:, :, t]

        db[..., n] = _reduce(adjoint * weighted, channel_dims)
        dweighted.addcmul_(adjoint, b_n)
        through_decay = adjoint.mul_(carried)
        ddelta.addcmul_(through_decay, a)
        dA[..., n] = (through_decay * delta).sum((0, 1, 2))
    ddelta.addcmul_(dweighted, x)
    return dweighted.mul_(delta), ddelta, dA, db, dc


def _reduce(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    return t.sum(dims, keepdim=True) if dims else t


# --------------------------------------------------------------------------------------------------------------------
# Sequences: padded to a square of chunks.


def _square(t: Tensor, fill: float = 0.0) -> Tensor:
    """(B, L, …) → (B, C, T, …), padded at the end; Δ = 0 leaves the state as it is."""
    length = t.shape[1]
    steps = max(1, math.isqrt(length))
    chunks = -(-length // steps)
    padding = [0, 0] * (t.ndim - 2) + [0, chunks * steps - length]
    return F.pad(t, padding, value=fill).unflatten(1, (chunks, steps))


def _sequence_operands(operands: SelectiveScanOperands) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, Δ, A, b and c of one route with channels E = (G, D/G)."""
    u, delta, A, B, C, _, delta_bias, delta_softplus, _ = operands
    dtype = accumulation_dtype(u.dtype)
    groups = B.shape[1]
    delta = delta.to(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    x, delta = (_square(t.to(dtype).transpose(1, 2)).unflatten(-1, (groups, -1)) for t in (u, delta))
    b, c = (_square(t.to(dtype).movedim(-1, 1)).unsqueeze(4) for t in (B, C))  # (B, C, T, G, 1, N)
    return x, delta, A.to(dtype).unflatten(0, (groups, -1)), b, c


def _unsquare(t: Tensor, length: int) -> Tensor:
    """(B, C, T, G, E) → (B, D, L)."""
    return t.flatten(3, 4).flatten(1, 2)[:, :length].transpose(1, 2)


def selective_scan(operands: SelectiveScanOperands) -> tuple[Tensor, Tensor]:
    """See `vmamba.ops.selective_scan`; B and C are ``(B, G, N, L)`` here."""
    u, D = operands.u, operands.D
    x, step, A_groups, b, c = _sequence_operands(operands)
    y = torch.zeros_like(x) if D is None else x * D.to(x.dtype).view(x.shape[3:])
    last = _scan_forward(y, x, step, A_groups, b, c, backward=False, carry=True)
    return _unsquare(y, u.shape[2]).to(u.dtype).contiguous(), last.flatten(1, 2)


def selective_scan_backward(dy: Tensor, dlast: Tensor, operands: SelectiveScanOperands) -> SelectiveScanGradients:
    """Gradients for (u, delta, A, B, C, D, delta_bias), in the accumulation dtype."""
    D, length, groups = operands.D, operands.u.shape[2], operands.B.shape[1]
    x, step, A_groups, b, c = _sequence_operands(operands)
    dy = _square(dy.to(x.dtype).transpose(1, 2)).unflatten(-1, (groups, -1))
    last = dlast.to(x.dtype).unflatten(1, (groups, -1))
    dx, ddelta, dA, db, dc = _scan_backward(dy, x, step, A_groups, b, c, backward=False, carry=True, dlast=last)
    dD = (dy * x).sum((0, 1, 2)).flatten()
    if D is not None:
        dx.addcmul_(dy, D.to(x.dtype).view(x.shape[3:]))
    if operands.delta_softplus:
        ddelta = ddelta * -torch.expm1(-step)
    dB, dC = (t.squeeze(4).flatten(1, 2)[:, :length].movedim(1, -1) for t in (db, dc))
    ddelta = _unsquare(ddelta, length)
    return _unsquare(dx, length), ddelta, dA.flatten(0, 1), dB, dC, dD, ddelta.sum((0, 2))


# --------------------------------------------------------------------------------------------------------------------
# Images: every route is a view, or a sequence where the grid's lines are no good as chunks.


class _Layout:
    """How one route of an H × W image becomes chunks (B, C, T, …), and back."""

    def __init__(self, route: Route, height: int, width: int, device: torch.device) -> None:
        self.route, self.height, self.width = route, height, width
        self.is_view = max(height, width) <= MAX_ASPECT * min(height, width)
        self.order = None if self.is_view else route.order(height, width, device)
        self.backward = route.backward and self.is_view  # a sequence is already in the order of travel
        self.carry = not (route.per_line and self.is_view)

    def chunks(self, t: Tensor) -> Tensor:
        if self.order is None:
            return t.transpose(1, 2) if self.route.columns else t
        lines = (-1, self.route.line_length(self.height, self.width))
        return _square(t.flatten(1, 2)[:, self.order].unflatten(1, lines).flatten(0, 1))

    def image(self, t: Tensor) -> Tensor:
        if self.order is None:
            return t.transpose(1, 2) if self.route.columns else t
        length = self.route.line_length(self.height, self.width)
        tokens = t.flatten(1, 2)[:, :length].unflatten(0, (-1, self.height * self.width // length)).flatten(1, 2)
        return tokens[:, self.order.argsort()].unflatten(1, (self.height, self.width))


def _step_size(low_rank: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Δ = softplus(r Wᵀ + β) for tokens (B, H, W, R)."""
    rows = low_rank.flatten(0, 2)
    return F.softplus(torch.addmm(bias, rows, weight.T)).view(*low_rank.shape[:3], -1)


def ss2d_scan(operands: SS2DOperands) -> Tensor:
    """See `vmamba.ops.ss2d_scan`."""
    x, dbc, dt_weight, A, D, dt_bias, pattern, _ = operands
    out_dtype, dtype = x.dtype, accumulation_dtype(x.dtype)
    x, dbc, dt_weight, A, D, dt_bias = (t.to(dtype) for t in (x, dbc, dt_weight, A, D, dt_bias))
    rank, states = dt_weight.shape[2], A.shape[2]
    y = x * D.sum(0)
    for k, route in enumerate(routes(pattern)):
        layout = _Layout(route, x.shape[1], x.shape[2], x.device)
        low_rank, b, c = dbc[:, :, :, k].split([rank, states, states], dim=-1)
        delta = _step_size(low_rank, dt_weight[k], dt_bias[k])
        x_k, delta_k, b_k, c_k = (layout.chunks(t) for t in (x, delta, b.unsqueeze(3), c.unsqueeze(3)))
        out = layout.chunks(y) if layout.is_view else torch.zeros_like(x_k)
        _scan_forward(out, x_k, delta_k, A[k], b_k, c_k, layout.backward, layout.carry)
        if not layout.is_view:
            y += layout.image(out)
    return y.to(out_dtype)


def ss2d_scan_backward(dy: Tensor, operands: SS2DOperands) -> SS2DGradients:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), in the accumulation dtype."""
    x, dbc, dt_weight, A, D, dt_bias, pattern, _ = operands
    dtype = accumulation_dtype(x.dtype)
    dy, x, dbc, dt_weight, A, D, dt_bias = (t.to(dtype) for t in (dy, x, dbc, dt_weight, A, D, dt_bias))
    rank, states = dt_weight.shape[2], A.shape[2]
    dx = dy * D.sum(0)
    dD = (dy * x).sum((0, 1, 2)).repeat(D.shape[0], 1)
    ddbc, ddt_weight, dA, ddt_bias = (torch.empty_like(t) for t in (dbc, dt_weight, A, dt_bias))
    for k, route in enumerate(routes(pattern)):
        layout = _Layout(route, x.shape[1], x.shape[2], x.device)
        low_rank, b, c = dbc[:, :, :, k].split([rank, states, states], dim=-1)
        delta = _step_size(low_rank, dt_weight[k], dt_bias[k])
        dy_k, x_k, delta_k, b_k, c_k = (layout.chunks(t) for t in (dy, x, delta, b.unsqueeze(3), c.unsqueeze(3)))
        dx_k, ddelta, dA[k], db, dc = _scan_backward(dy_k, x_k, delta_k, A[k], b_k, c_k, layout.backward, layout.carry)
        dx += layout.image(dx_k)
        draw = (layout.image(ddelta) * -torch.expm1(-delta)).flatten(0, 2)  # softplus' in terms of its value
        ddbc[:, :, :, k, :rank] = (draw @ dt_weight[k]).view_as(low_rank)
        ddbc[:, :, :, k, rank : rank + states] = layout.image(db).squeeze(3)
        ddbc[:, :, :, k, rank + states :] = layout.image(dc).squeeze(3)
        ddt_weight[k] = draw.T @ low_rank.flatten(0, 2)
        ddt_bias[k] = draw.sum(0)
    return dx, ddbc, ddt_weight, dA, dD, ddt_bias
