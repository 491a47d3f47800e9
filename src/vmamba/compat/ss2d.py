"""SS2D under the authors' names: the part that both of their generations share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.layers.call import call
from vmamba.layers.scan import init_dt_bias, init_scan
from vmamba.ops import ss2d_scan

ROUTES = 4


class AuthorSS2D(nn.Module):
    """Parameters of the scan by the authors' names, and the way from tokens to tokens.

    With D inner channels, K = 4 routes, state size N and rank R: ``A_logs`` (K·D, N), ``Ds`` (K·D,), ``dt_projs_bias``
    (K, D). The first generation has ``x_proj_weight`` (K, R+2N, D) and ``dt_projs_weight`` (K, D, R), the second
    ``x_proj.weight`` (K(R+2N), D) and ``dt_projs.weight`` (K·D, R).
    """

    in_proj: nn.Module
    conv2d: nn.Module
    act: nn.Module
    out_norm: nn.Module
    out_proj: nn.Module

    def __init__(self, dim: int, inner: int, d_state: int, dt_rank: int | str, *, layers: bool, **factory: Any) -> None:
        super().__init__()
        rank = math.ceil(dim / 16) if isinstance(dt_rank, str) else dt_rank
        self.d_model, self.d_inner, self.d_state, self.dt_rank = dim, inner, d_state, rank
        if layers:
            self.x_proj = nn.Linear(inner, ROUTES * (rank + 2 * d_state), bias=False, **factory)
            self.dt_projs = nn.Linear(rank, ROUTES * inner, bias=False, **factory)
        else:
            self.x_proj_weight = nn.Parameter(torch.empty(ROUTES, rank + 2 * d_state, inner, **factory))
            self.dt_projs_weight = nn.Parameter(torch.empty(ROUTES, inner, rank, **factory))
            nn.init.kaiming_uniform_(self.x_proj_weight.flatten(0, 1), a=math.sqrt(5))
        self.dt_projs_bias = nn.Parameter(torch.empty(ROUTES, inner, **factory))
        self.A_logs = nn.Parameter(torch.empty(ROUTES * inner, d_state, **factory))
        self.Ds = nn.Parameter(torch.empty(ROUTES * inner, **factory))

    @torch.no_grad()
    def init_scan(
        self,
        init: str,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
    ) -> None:
        """Initial values; the arguments from `dt_min` on are for ``init="mamba"``."""
        weight = self._dt_weight().detach()
        init_scan(self.A_logs, self.Ds, weight, self.dt_projs_bias, init)
        if init == "mamba":
            bound = self.dt_rank**-0.5 * dt_scale
            if dt_init == "constant":
                nn.init.constant_(weight, bound)
            elif dt_init == "random":
                nn.init.uniform_(weight, -bound, bound)
            else:
                raise ValueError(f"SS2D: dt_init must be 'random' or 'constant', got {dt_init!r}")
            init_dt_bias(self.dt_projs_bias, dt_min, dt_max, dt_init_floor)

    def mix(self, x: Tensor, scan: str = "cross") -> Tensor:
        """Convolution, activation, scan: (B, H, W, D) → (B, H, W, D)."""
        x = self.act(self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        if scan != "cascade":
            return self._scan(x, scan, 0, ROUTES)
        # The backward routes' outputs stay mirrored along the line, as trained cascade models have it.
        x = F.layer_norm(x, x.shape[-1:])
        x = self._scan(x, "rows", 0, 1) + self._scan(x, "rows_backward", 1, 2).flip(2)
        x = F.layer_norm(x, x.shape[-1:])
        return self._scan(x, "columns", 2, 3) + self._scan(x, "columns_backward", 3, 4).flip(1)

    def _scan(self, x: Tensor, pattern: str, first: int, end: int) -> Tensor:
        """Scan with the parameter groups ``first … end - 1``."""
        projected = call(self.x_proj, x) if hasattr(self, "x_proj") else F.linear(x, self.x_proj_weight.flatten(0, 1))
        dbc = projected.unflatten(-1, (ROUTES, -1))[..., first:end, :]
        A = -torch.exp(self.A_logs if self.A_logs.dtype == torch.float64 else self.A_logs.float())
        A, D = (t.unflatten(0, (ROUTES, -1))[first:end] for t in (A, self.Ds))
        return ss2d_scan(x, dbc, self._dt_weight()[first:end], A, D, self.dt_projs_bias[first:end], pattern)

    def _dt_weight(self) -> Tensor:
        """(K, D, R)."""
        if hasattr(self, "dt_projs"):
            return self.dt_projs.weight.unflatten(0, (ROUTES, -1))
        return self.dt_projs_weight


def depthwise(inner: int, kernel_size: int, bias: bool, **factory: Any) -> nn.Conv2d:
    """The convolution before the scan."""
    return nn.Conv2d(inner, inner, kernel_size, padding=(kernel_size - 1) // 2, groups=inner, bias=bias, **factory)
