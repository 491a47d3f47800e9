"""`scan_routes` in PyTorch's operations around `selective_scan`: tokens are copied along the routes."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from vmamba.ops.operands import RoutesOperands, accumulation_dtype
from vmamba.ops.selective_scan import selective_scan


def gathered_scan(operands: RoutesOperands) -> Tensor:
    """See `vmamba.ops.scan_routes`; the operands have been checked."""
    x, dbc, dt_weight, A, D, dt_bias, order, by_route = operands
    batch, *grid, channels = x.shape
    routes, states, rank = A.shape[0], A.shape[2], dt_weight.shape[2]
    x = x.flatten(1, -2)
    tokens = x.shape[1]
    dtype, route = accumulation_dtype(x.dtype), torch.arange(routes, device=x.device)[:, None]
    sample = torch.arange(batch, device=x.device)[:, None, None]
    padding = order < 0
    place = torch.where(padding, batch * tokens, order + sample * tokens)  # (B, K, L), rows of x

    along = _rows(x.reshape(batch * tokens, channels), place)  # (B, K, L, D)
    if not operands.has_common_rows:
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

    count = routes if by_route else 1  # of maps
    place = (order + (sample * routes + route) * tokens) if by_route else (order + sample * tokens)
    place = torch.where(padding, batch * count * tokens, place)
    maps = y.new_zeros(batch * count * tokens + 1, channels).index_add(0, place.flatten(), y)[:-1].to(x.dtype)
    return maps.view(batch, routes, *grid, channels) if by_route else maps.view(batch, *grid, channels)


def _rows(table: Tensor, place: Tensor) -> Tensor:
    """Rows of a table, and zeros for the index after its last."""
    table = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return table.index_select(0, place.flatten()).view(*place.shape, table.shape[1])


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Keep autocast from rounding Δ, as it cannot inside an operator."""
    active = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else contextlib.nullcontext()
