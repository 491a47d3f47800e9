"""`ss2d_scan` in PyTorch's own operators, for runtimes without loops: a scan of logarithmic depth, for one image size.

The recurrence ``h[l] = a[l] h[l-1] + b[l]`` is associative: pairs (a, b) at distance 1, 2, 4 … are combined until all
tokens before are in. Nothing is divided by a decay. Source: Hillis and Steele, "Data parallel algorithms", 1986.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops.routes import Route, routes


def ss2d_scan(
    x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str = "cross"
) -> Tensor:
    """See `vmamba.ops.ss2d_scan`; the height and width are constants of what is traced."""
    rank, states = dt_weight.shape[2], A.shape[2]
    operands = []
    for k, route in enumerate(routes(pattern)):
        r, b, c = dbc[:, :, :, k].split([rank, states, states], dim=-1)
        delta = F.softplus(F.linear(r, dt_weight[k], dt_bias[k]))  # (B, H, W, D)
        operands.append([_along(t, route) for t in (delta, delta * x, b, c)])  # (B, lines, steps, …)
    delta, drive, b, c = (torch.stack(tensors, 1) for tensors in zip(*operands, strict=True))  # (B, K, lines, steps, …)
    decay = torch.exp(delta[..., None] * A[:, None, None])  # (B, K, lines, steps, D, N)
    h = _scan(decay, drive[..., None] * b[..., None, :])
    scanned = (h * c[..., None, :]).sum(-1)
    y = x * D.sum(0)
    for k, route in enumerate(routes(pattern)):
        y = y + _back(scanned[:, k], route, x.shape[1], x.shape[2])
    return y


def _scan(decay: Tensor, state: Tensor) -> Tensor:
    """States after every step, from zero states: (B, K, lines, steps, D, N)."""
    steps, distance = decay.shape[3], 1
    while distance < steps:
        first, later = state.split([distance, steps - distance], 3)
        before = state.narrow(3, 0, steps - distance)
        reach = decay.narrow(3, distance, steps - distance)
        state = torch.cat([first, later + reach * before], 3)
        decay = torch.cat([decay.narrow(3, 0, distance), reach * decay.narrow(3, 0, steps - distance)], 3)
        distance *= 2
    return state


def _along(tensor: Tensor, route: Route) -> Tensor:
    """(B, H, W, C) → (B, lines, steps, C), in the order of the route; one line where the state is carried over."""
    if route.columns:
        tensor = tensor.transpose(1, 2)
    if not route.per_line:
        tensor = tensor.flatten(1, 2)[:, None]
    return tensor.flip(2) if route.backward else tensor


def _back(tensor: Tensor, route: Route, height: int, width: int) -> Tensor:
    """(B, lines, steps, C) → (B, H, W, C)."""
    if route.backward:
        tensor = tensor.flip(2)
    tensor = tensor.reshape(tensor.shape[0], *((width, height) if route.columns else (height, width)), tensor.shape[-1])
    return tensor.transpose(1, 2) if route.columns else tensor
