"""`scan_routes`: selective scans along any routes through the tokens of an image, given as index maps."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from vmamba.ops.checks import check_operands
from vmamba.ops.operands import accumulation_dtype
from vmamba.ops.selective_scan import selective_scan

_INDEX_DTYPES = (torch.int64, torch.int32)


def scan_routes(
    x: Tensor,
    dbc: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    order: Tensor,
    reduce: str | None = "sum",
) -> Tensor:
    """Selective scans over the tokens of an image, one along each route of `order`.

    For route k, whose t-th token is ``l = order[k, t]``, with (r, b, c) = ``dbc[l, k]``::

        Δ[t] = softplus(dt_weight[k] r + dt_bias[k])
        h[t] = exp(Δ[t] A[k]) h[t-1] + Δ[t] x[l] b
        y_k[l] = Σ_n c h[t] + D[k] x[l]

    Where `order` is -1 there is padding: x and (r, b, c) are zero, so that ``Δ = softplus(dt_bias[k])``; it adds
    nothing to the state, which decays all the same, and has no output. A route that leaves a token out gives it zero,
    one that comes to it twice the sum.

    Any order is possible (`vmamba.ops.orders` has some); where the patterns of `ss2d_scan` do, it is the faster one,
    since tokens are copied along the routes here. Made of PyTorch's operations around `selective_scan`. State, Δ and
    sums are float32, or float64 for float64 x.

    Args:
        x: Features, (B, H, W, D) or (B, T, D), any floating dtype.
        dbc: Rank-R part of Δ, B and C of every token and route, (B, H, W, K, R+2N) or (B, T, K, R+2N); without K, all
            routes share them.
        dt_weight: (K, D, R).
        A: (K, D, N).
        D: Skip, (K, D).
        dt_bias: (K, D).
        order: Row-major indices of tokens, or -1, for all samples, (K, L), or for each, (B, K, L); int64 or int32.
        reduce: ``"sum"`` of the routes, or None.

    Returns:
        Like x; without `reduce` (B, K, H, W, D) or (B, K, T, D), by route. x's dtype.

    Raises:
        TypeError: For an operand that is not a floating-point tensor, or an order that is not one of integers.
        ValueError: For shapes that do not fit, another `reduce`, operands on different devices, or indices outside of
            the image (on a CPU; on other devices they are PyTorch's to notice).
    """
    grid = "H W" if getattr(x, "ndim", 4) == 4 else "T"
    shared = getattr(dbc, "ndim", 0) == getattr(x, "ndim", 0)
    sizes = check_operands(
        "scan_routes",
        {
            "x": (x, f"B {grid} D"),
            "dt_weight": (dt_weight, "K D R"),
            "A": (A, "K D N"),
            "D": (D, "K D"),
            "dt_bias": (dt_bias, "K D"),
            "dbc": (dbc, f"B {grid} R+2N" if shared else f"B {grid} K R+2N"),
        },
    )
    if reduce not in ("sum", None):
        raise ValueError(f"scan_routes: reduce must be 'sum' or None, got {reduce!r}")
    batch, channels, routes, rank, states = (sizes[name] for name in ("B", "D", "K", "R", "N"))
    shape = x.shape[1:-1]
    x = x.flatten(1, -2)
    tokens = x.shape[1]
    _check_order(order, batch, routes, tokens, x.device)

    dtype, route = accumulation_dtype(x.dtype), torch.arange(routes, device=x.device)[:, None]
    sample = torch.arange(batch, device=x.device)[:, None, None]
    padding = order < 0
    place = torch.where(padding, batch * tokens, order + sample * tokens)  # (B, K, L), rows of x

    along = _rows(x.reshape(batch * tokens, channels), place)  # (B, K, L, D)
    if not shared:
        place = torch.where(padding, batch * tokens * routes, (order + sample * tokens) * routes + route)
    parts = _rows(dbc.reshape(-1, dbc.shape[-1]), place).to(dtype)  # (B, K, L, R+2N)
    low_rank, b, c = parts.split([rank, states, states], dim=-1)
    with _full_precision(x.device):
        delta = dt_weight.to(dtype) @ low_rank.mT  # (B, K, D, L)
    y = selective_scan(
        along.to(dtype).mT.flatten(1, 2),
        delta.flatten(1, 2),
        A.to(dtype).flatten(0, 1),
        b.mT,
        c.mT,
        D.flatten(),
        delta_bias=dt_bias.flatten(),
        delta_softplus=True,
    )
    assert isinstance(y, Tensor)
    y = y.unflatten(1, (routes, channels)).mT.reshape(-1, channels)  # (B·K·L, D)

    count = 1 if reduce else routes  # of maps
    place = (order + sample * (tokens * count)) if reduce else (order + (sample * routes + route) * tokens)
    place = torch.where(padding, batch * count * tokens, place)
    maps = y.new_zeros(batch * count * tokens + 1, channels).index_add(0, place.flatten(), y)[:-1].to(x.dtype)
    return maps.view(batch, *shape, channels) if reduce else maps.view(batch, routes, *shape, channels)


def _rows(table: Tensor, place: Tensor) -> Tensor:
    """Rows of a table, and zeros for the index after its last."""
    table = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return table.index_select(0, place.flatten()).view(*place.shape, -1)


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Keep autocast from rounding Δ, as it cannot inside an operator."""
    active = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else contextlib.nullcontext()


def _check_order(order: Tensor, batch: int, routes: int, tokens: int, device: torch.device) -> None:
    if not isinstance(order, Tensor) or order.dtype not in _INDEX_DTYPES:
        kind = order.dtype if isinstance(order, Tensor) else type(order).__name__
        raise TypeError(f"scan_routes: order must be a tensor of int64 or int32, got {kind}")
    if order.device != device:
        raise ValueError(f"scan_routes: order is on {order.device}, the first operand on {device}")
    if order.ndim not in (2, 3) or order.shape[-2] != routes or (order.ndim == 3 and order.shape[0] != batch):
        raise ValueError(
            f"scan_routes: order must have shape (K, L) or (B, K, L) with K = {routes} and B = {batch}, "
            f"got {tuple(order.shape)}"
        )
    if order.shape[-1] == 0:
        raise ValueError("scan_routes: the routes of order are empty")
    if device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = order.aminmax()
        if low < -1 or high >= tokens:
            raise ValueError(f"scan_routes: order must be from -1 to {tokens - 1}, got {int(low)} to {int(high)}")
