"""Other routes in `SS2D`: layers in the place of its `scan`, and the attention that weighs what routes bring."""

# No postponed annotations here: TorchScript could not read those of the functions that it leaves to Python.
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.layers.scan import SelectiveScan2d
from vmamba.layers.ss2d import SS2D
from vmamba.ops import orders, scan_routes


class ChannelAttention(nn.Module):
    """Multiply every channel by a number in (0, 1) that follows from the means of all: (…, H, W, dim) → the same.

    Args:
        dim: Channels.
        ratio: Channels between the two linear maps, as a fraction of `dim`.
        device: Where to create the parameters.
        dtype: Their dtype.
    """

    def __init__(
        self,
        dim: int,
        *,
        ratio: float = 0.125,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.fc1 = nn.Linear(dim, int(dim * ratio), device=device, dtype=dtype)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(int(dim * ratio), dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        means = self.norm(x).mean(dim=(-3, -2), keepdim=True)
        return x * self.fc2(self.act(self.fc1(means))).sigmoid()


class DirectedScan2d(SelectiveScan2d):
    """`SelectiveScan2d` along rows, columns and windows, each route weighed by `ChannelAttention` before the sum.

    Source: Huang et al., "LocalMamba", 2024.

    Args:
        dim: Inner channels D.
        directions: One for each of SS2D's four routes: ``"h"`` (rows), ``"v"`` (columns), ``"w2"`` or any other size
            (windows), with ``"_flip"`` backward.
        device: Where to create the parameters.
        dtype: Their dtype.
    """

    def __init__(
        self,
        dim: int,
        directions: Sequence[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.directions = list(directions)
        directed_order(1, 1, self.directions)  # fails now, not in the first forward
        self.attention = ChannelAttention(dim, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        dbc: Tensor,
        dt_weight: Tensor,
        A: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        pattern: str,
        first: int = 0,
        end: int = 4,
    ) -> Tensor:
        maps = _scan_directions(x, dbc, dt_weight, A, D, dt_bias, self.directions)
        return self.attention(maps).sum(1)

    def extra_repr(self) -> str:
        return ", ".join(self.directions)


class StridedScan2d(SelectiveScan2d):
    """`SelectiveScan2d` along four routes that have every second row and column each: a token is on one of them."""

    def forward(
        self,
        x: Tensor,
        dbc: Tensor,
        dt_weight: Tensor,
        A: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        pattern: str,
        first: int = 0,
        end: int = 4,
    ) -> Tensor:
        return _scan_strided(x, dbc, dt_weight, A, D, dt_bias)


class StridedProjection(nn.Module):
    """A linear map for each route of `StridedScan2d`, of the tokens on it: (B, H, W, dim) → (B, H, W, out_dim)."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        layers = (nn.Linear(dim, out_dim, bias=False, device=device, dtype=dtype) for _ in range(4))
        self.routes = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        parts: list[Tensor] = []
        for k, layer in enumerate(self.routes):  # first the starts in even columns, as in `orders.strided`
            parts.append(layer(x[:, k % 2 :: 2, k // 2 :: 2]))
        columns = [torch.stack(parts[:2], dim=2), torch.stack(parts[2:], dim=2)]  # (B, H/2, 2, W/2, C)
        return torch.stack(columns, dim=4).flatten(3, 4).flatten(1, 2)[:, :height, :width]


class StridedSS2D(SS2D):
    """`SS2D` whose four routes share the tokens out, a quarter each: tokens (B, H, W, dim) → (B, H, W, dim).

    A token is projected for its own route alone. The paper's ES2D.

    Source: Pei et al., "EfficientVMamba", 2024.

    Args:
        dim: Channels.
        device: Where to create the parameters.
        dtype: Their dtype.
        **options: Keywords of `SS2D`; `scan` has no meaning here.
    """

    def __init__(
        self,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dim, device=device, dtype=dtype, **options)
        inner, parts = self.x_proj.in_features, self.x_proj.out_features // self.routes
        self.x_proj = StridedProjection(inner, parts, device=device, dtype=dtype)  # type: ignore[assignment]
        self.scan = StridedScan2d()

    def _project(self, x: Tensor) -> Tensor:
        """Low-rank Δ, B and C of every token, for its own route: (B, H, W, D) → (B, H, W, R+2N)."""
        return self.x_proj(x)


def directed_order(
    height: int, width: int, directions: Sequence[str], device: torch.device | str | None = None
) -> Tensor:
    """An order for `scan_routes` with a route for each direction (K, L), padded at the end to one length.

    Raises:
        ValueError: For an unknown direction.
    """
    routes = [_route(height, width, direction, device) for direction in directions]
    length = max(len(route) for route in routes)
    return torch.stack([F.pad(route, (0, length - len(route)), value=-1) for route in routes])


def _route(height: int, width: int, direction: str, device: torch.device | str | None) -> Tensor:
    kind, _, backward = direction.partition("_")
    if kind == "h":
        route = orders.rows(height, width, device)
    elif kind == "v":
        route = orders.columns(height, width, device)
    elif kind[:1] == "w" and kind[1:].isdigit() and int(kind[1:]):
        route = orders.windows(height, width, int(kind[1:]), device)
    else:
        raise ValueError(
            f"unknown direction {direction!r}; choose h, v or a window such as w7, with _flip for backward"
        )
    if backward not in ("", "flip"):
        raise ValueError(f"unknown direction {direction!r}; what goes backward ends in _flip")
    return route.flip(-1) if backward else route


@torch.fx.wrap
@torch.jit.ignore  # type: ignore[untyped-decorator]
def _scan_directions(
    x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, directions: list[str]
) -> Tensor:
    order = directed_order(x.shape[1], x.shape[2], directions, x.device)
    return scan_routes(x, dbc, dt_weight, A, D, dt_bias, order, reduce=None)


@torch.fx.wrap
@torch.jit.ignore  # type: ignore[untyped-decorator]
def _scan_strided(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
    order = orders.strided(x.shape[1], x.shape[2], 2, x.device)
    return scan_routes(x, dbc, dt_weight, A, D, dt_bias, order)
