"""The scans in portable PyTorch: any device, no compiler, no Python loop over the L tokens.

A sequence of L tokens is laid out as C chunks of T tokens, both about √L. The recurrence is associative, so

1. the end state of every chunk is computed from a zero start, all chunks at once (T steps);
2. the start states follow from the end states and the chunks' whole decays ``exp(A ΣΔ)`` (C steps);
3. every chunk runs again from its start state, all at once, and its outputs are read off (T steps).

Nothing is ever divided by a decay, so any Δ is stable. The backward pass recomputes the states from the inputs, then
runs the same three steps in the opposite direction for the adjoint. Results do not depend on the number of threads.

On an image the chunks are the rows or columns of the grid itself: a route is a (possibly transposed) *view* of the
image and a direction of travel, and no feature is copied along it. States are handled one at a time, so memory does
not grow with N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
#: Terms of a matrix product that are added up at once.
BLOCK = 64
#: Rows of a matrix product that one thread computes at a time.
ROWS = 256


# --------------------------------------------------------------------------------------------------------------------
# On a CPU the last bits of sums, long matrix products and softplus depend on how PyTorch divides the work: a thread
# computes the elements that fill no vector, at the end of its part, in another way. These do not.


def _softplus(x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return F.softplus(x)
    return torch.where(x > 20, x, torch.log1p(torch.exp_(x.clamp(max=20))))


def _sum(t: Tensor, dim: int) -> Tensor:
    """Sum by halves: only additions of two elements."""
    if t.device.type != "cpu" or t.shape[dim] == 0:
        return t.sum(dim)
    while (size := t.shape[dim]) > 1:
        half = size // 2
        pairs = t.narrow(dim, 0, half) + t.narrow(dim, half, half)
        t = torch.cat([pairs, t.narrow(dim, size - 1, 1)], dim) if size % 2 else pairs
    return t.squeeze(dim)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices, cut into products that are each one thread's, the inner dimension added up in order.

    A library divides a product among threads in ways that change its bits, but not several products, if these are as
    many as the threads.
    """
    if a.device.type != "cpu" or torch.compiler.is_compiling():
        return a @ b
    (rows, inner), columns = a.shape, b.shape[1]
    height = min(max(rows, 2), ROWS)  # matrices, never vectors
    a = F.pad(a, [0, -inner % BLOCK, 0, -rows % height])
    b = F.pad(b, [0, max(0, 2 - columns), 0, -inner % BLOCK])
    a = a.view(len(a) // height, height, a.shape[1] // BLOCK, BLOCK).transpose(1, 2)
    b = b.view(1, len(b) // BLOCK, BLOCK, b.shape[1]).expand(len(a), -1, -1, -1)
    idle = max(0, torch.get_num_threads() - a.shape[0] * a.shape[1])
    parts = a.shape[:2]
    products = torch.bmm(*(F.pad(t.flatten(0, 1), [0, 0, 0, 0, 0, idle]) for t in (a, b)))
    return _sum(products[: parts.numel()].unflatten(0, parts), 1).flatten(0, 1)[:rows, :columns]


# --------------------------------------------------------------------------------------------------------------------
# One route. Shapes: x, delta, y, dy (B, C, T, *E) with E the channels; A (*E, N); b, c (B, C, T, *1, N).
# No operand is written to: these functions are also what the operators are differentiated through.


def _travel(length: int, backward: bool) -> Sequence[int]:
    return range(length)[::-1] if backward else range(length)


def _in_order(steps: list[Tensor], backward: bool, dim: int) -> Tensor:
    """The results of the steps as one tensor, in the order of the tokens."""
    return torch.stack(steps[::-1] if backward else steps, dim)


def _chunk_starts(end: Tensor, decay: Tensor, backward: bool, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Start state of every chunk, and the state after the last, from end states and whole decays (B, C, *E)."""
    state = torch.zeros_like(end[:, 0]) if first is None else first
    starts = []
    for chunk in _travel(end.shape[1], backward):
        starts.append(state)
        state = torch.addcmul(end[:, chunk], decay[:, chunk], state)
    return _in_order(starts, backward, 1), state


def _start_states(decay: Tensor, drive: Tensor, whole: Tensor, backward: bool, carry: bool) -> tuple[Tensor, Tensor]:
    """Steps 1 and 2: the state before every chunk, and the one after the last chunk."""
    if not carry:
        return torch.zeros_like(whole), torch.zeros_like(whole[:, 0])
    first, *order = _travel(drive.shape[2], backward)
    end = drive[:, :, first]
    for t in order:
        end = torch.addcmul(drive[:, :, t], decay[:, :, t], end)
    return _chunk_starts(end, whole, backward)


def _scan_forward(
    y: Tensor, x: Tensor, delta: Tensor, A: Tensor, b: Tensor, c: Tensor, backward: bool, carry: bool
) -> tuple[Tensor, Tensor]:
    """``y + Σ_n c h``, and the last state (B, *E, N)."""
    weighted = delta * x
    whole_delta = _sum(delta, 2)
    last = []
    for n in range(A.shape[-1]):
        decay = torch.exp_(delta * A[..., n])
        drive = weighted * b[..., n]
        state, final = _start_states(decay, drive, torch.exp_(whole_delta * A[..., n]), backward, carry)
        states = []
        for t in _travel(x.shape[2], backward):
            state = torch.addcmul(drive[:, :, t], decay[:, :, t], state)
            states.append(state)
        y = torch.addcmul(y, c[..., n], _in_order(states, backward, 2))
        last.append(final)
    return y, torch.stack(last, dim=-1)


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
    whole_delta = _sum(delta, 2)
    dweighted, ddelta = torch.zeros_like(delta), torch.zeros_like(delta)
    dA, db, dc = [], [], []
    common = b.ndim - 2  # b and c have one value for all channels of this dimension
    steps = x.shape[2]
    for n in range(A.shape[-1]):
        a, b_n, c_n = A[..., n], b[..., n], c[..., n]
        decay = torch.exp_(delta * a)
        drive = weighted * b_n
        whole = torch.exp_(whole_delta * a)

        # The states again: carried[t] = decay[t] h[t-1], then h = carried + drive.
        state, _ = _start_states(decay, drive, whole, backward, carry)
        on_the_way = []
        for t in _travel(steps, backward):
            on_the_way.append(decay[:, :, t] * state)
            state = on_the_way[-1] + drive[:, :, t]
        carried = _in_order(on_the_way, backward, 2)
        dc.append(_sum(dy * (carried + drive), common).unsqueeze(common))

        # The adjoint g[t] = c[t] dy[t] + decay[t+1] g[t+1], against the route; `pushed` is decay[t] g[t].
        own = dy * c_n
        pushed = torch.zeros_like(whole)
        if carry:
            for t in _travel(steps, not backward):
                pushed = decay[:, :, t] * (own[:, :, t] + pushed)
            pushed, _ = _chunk_starts(pushed, whole, not backward, None if dlast is None else dlast[..., n])
        on_the_way = []
        for t in _travel(steps, not backward):
            on_the_way.append(own[:, :, t] + pushed)
            pushed = decay[:, :, t] * on_the_way[-1]
        adjoint = _in_order(on_the_way, not backward, 2)

        db.append(_sum(adjoint * weighted, common).unsqueeze(common))
        dweighted = torch.addcmul(dweighted, adjoint, b_n)
        through_decay = adjoint * carried
        ddelta = torch.addcmul(ddelta, through_decay, a)
        dA.append(_sum((through_decay * delta).flatten(0, 2), 0))
    dx, ddelta = dweighted * delta, torch.addcmul(ddelta, dweighted, x)
    return dx, ddelta, *(torch.stack(grads, dim=-1) for grads in (dA, db, dc))  # type: ignore[return-value]


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
        delta = _softplus(delta)
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
    y, last = _scan_forward(y, x, step, A_groups, b, c, backward=False, carry=True)
    return _unsquare(y, u.shape[2]).to(u.dtype).contiguous(), last.flatten(1, 2)


def selective_scan_backward(dy: Tensor, dlast: Tensor, operands: SelectiveScanOperands) -> SelectiveScanGradients:
    """Gradients for (u, delta, A, B, C, D, delta_bias), in the accumulation dtype."""
    D, length, groups = operands.D, operands.u.shape[2], operands.B.shape[1]
    x, step, A_groups, b, c = _sequence_operands(operands)
    dy = _square(dy.to(x.dtype).transpose(1, 2)).unflatten(-1, (groups, -1))
    last = dlast.to(x.dtype).unflatten(1, (groups, -1))
    dx, ddelta, dA, db, dc = _scan_backward(dy, x, step, A_groups, b, c, backward=False, carry=True, dlast=last)
    dD = _sum((dy * x).flatten(0, 2), 0).flatten()
    if D is not None:
        dx = torch.addcmul(dx, dy, D.to(x.dtype).view(x.shape[3:]))
    if operands.delta_softplus:
        ddelta = ddelta * -torch.expm1(-step)
    dB, dC = (t.squeeze(4).flatten(1, 2)[:, :length].movedim(1, -1) for t in (db, dc))
    ddelta = _unsquare(ddelta, length)
    return _unsquare(dx, length), ddelta, dA.flatten(0, 1), dB, dC, dD, _sum(ddelta.transpose(0, 1).flatten(1), 1)


# --------------------------------------------------------------------------------------------------------------------
# Images: every route is a view, or a sequence where the grid's lines are no good as chunks.


class _Layout:
    """One route of an H × W image as chunks (B, C, T, …), and back."""

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
    rows = _product(low_rank.flatten(0, 2), weight.T) + bias
    return _softplus(rows).view(*low_rank.shape[:3], weight.shape[0])


def ss2d_scan(operands: SS2DOperands) -> Tensor:
    """See `vmamba.ops.ss2d_scan`."""
    dtype = accumulation_dtype(operands.x.dtype)
    x, dbc, dt_weight, A, D, dt_bias = (t.to(dtype) for t in operands[:6])
    rank, states = dt_weight.shape[2], A.shape[2]
    y = x * D.sum(0)
    for k, route in enumerate(routes(operands.pattern)):
        layout = _Layout(route, x.shape[1], x.shape[2], x.device)
        low_rank, b, c = dbc[:, :, :, k].split([rank, states, states], dim=-1)
        delta = _step_size(low_rank, dt_weight[k], dt_bias[k])
        y_k, x_k, delta_k, b_k, c_k = (layout.chunks(t) for t in (y, x, delta, b.unsqueeze(3), c.unsqueeze(3)))
        y_k, _ = _scan_forward(y_k, x_k, delta_k, A[k], b_k, c_k, layout.backward, layout.carry)
        y = layout.image(y_k)
    return y.to(operands.x.dtype).contiguous()


def ss2d_scan_backward(dy: Tensor, operands: SS2DOperands) -> SS2DGradients:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), in the accumulation dtype."""
    dtype = accumulation_dtype(operands.x.dtype)
    dy, x, dbc, dt_weight, A, D, dt_bias = (t.to(dtype) for t in (dy, *operands[:6]))
    rank, states = dt_weight.shape[2], A.shape[2]
    dx = dy * D.sum(0)
    dD = _sum((dy * x).flatten(0, 2), 0).repeat(D.shape[0], 1)
    per_route = []
    for k, route in enumerate(routes(operands.pattern)):
        layout = _Layout(route, x.shape[1], x.shape[2], x.device)
        low_rank, b, c = dbc[:, :, :, k].split([rank, states, states], dim=-1)
        delta = _step_size(low_rank, dt_weight[k], dt_bias[k])
        dy_k, x_k, delta_k, b_k, c_k = (layout.chunks(t) for t in (dy, x, delta, b.unsqueeze(3), c.unsqueeze(3)))
        dx_k, ddelta, dA, db, dc = _scan_backward(dy_k, x_k, delta_k, A[k], b_k, c_k, layout.backward, layout.carry)
        dx = dx + layout.image(dx_k)
        draw = (layout.image(ddelta) * -torch.expm1(-delta)).flatten(0, 2)  # softplus' in terms of its value
        dlow_rank = _product(draw, dt_weight[k]).view(low_rank.shape)
        ddbc = torch.cat([dlow_rank, layout.image(db).squeeze(3), layout.image(dc).squeeze(3)], dim=-1)
        per_route.append((ddbc, _product(draw.T, low_rank.flatten(0, 2)), dA, _sum(draw, 0)))
    ddbc, ddt_weight, dA, ddt_bias = (torch.stack(grads) for grads in zip(*per_route, strict=True))
    return dx, ddbc.movedim(0, 3), ddt_weight, dA, dD, ddt_bias
