"""What the scan is compared with: features copied along the routes, Δ written out, a scan of sequences, copies back.

As the authors' fastest code does it: the copies are Triton kernels, forward and backward, and the scan of sequences is
ours, or that of `mamba_ssm` where it is installed. Nothing is a loop in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vmamba.ops import selective_scan


@dataclass(frozen=True)
class Pipeline:
    """Route copies, Δ projection, a scan of sequences, sum over the routes."""

    sequences: Callable[..., Tensor]

    @staticmethod
    def operands(values: list[Tensor]) -> list[Tensor]:
        """Those of `ss2d_scan` as it has them: x (B, D, H, W), and dbc (B, K, R+2N, L) in the order of the visits."""
        x, dbc, *parameters = values
        rows, columns = dbc.flatten(1, 2), dbc.transpose(1, 2).flatten(1, 2)
        visited = [rows[:, :, 0], columns[:, :, 1], rows[:, :, 2].flip(1), columns[:, :, 3].flip(1)]
        return [x.permute(0, 3, 1, 2).contiguous(), torch.stack(visited, 1).transpose(2, 3).contiguous(), *parameters]

    def __call__(self, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
        """The output, (B, D, H, W)."""
        height, width = x.shape[2:]
        states = A.shape[2]
        routes = cross_scan(x)
        rank, B, C = (t.contiguous() for t in dbc.split([dbc.shape[2] - 2 * states, states, states], 2))
        delta = torch.einsum("bkrl,kdr->bkdl", rank, dt_weight.to(rank.dtype))
        a, d, bias = (t.flatten(0, 1) for t in (A, D, dt_bias))
        u, delta = routes.flatten(1, 2), delta.flatten(1, 2)
        y = self.sequences(u, delta, a, B, C, d, delta_bias=bias, delta_softplus=True)
        return cross_merge(y.view(routes.shape), height, width)


@cache
def pipelines() -> dict[str, Pipeline]:
    """By name."""
    known = {"unfused (our selective_scan)": Pipeline(selective_scan)}
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return known
    return known | {"unfused (mamba_ssm)": Pipeline(selective_scan_fn)}


def cross_scan(x: Tensor) -> Tensor:
    """(B, D, H, W) along the four routes: (B, 4, D, H·W)."""
    return _CrossScan.apply(x)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """The sum of the four routes, (B, 4, D, H·W), where they came from: (B, D, H, W)."""
    return _CrossMerge.apply(y, height, width)


def _copy_out(x: Tensor) -> Tensor:
    from gpu_bench.cross import cross

    batch, channels, height, width = x.shape
    y = x.new_empty(batch, 4, channels, height * width)
    cross(x.contiguous(), y, merge=False)
    return y


def _copy_back(y: Tensor, height: int, width: int) -> Tensor:
    from gpu_bench.cross import cross

    x = y.new_empty(y.shape[0], y.shape[2], height, width)
    cross(x, y.contiguous(), merge=True)
    return x


class _CrossScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.size = x.shape[2:]
        return _copy_out(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return _copy_back(dy, *ctx.size)


class _CrossMerge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, height: int, width: int) -> Tensor:
        return _copy_back(y, height, width)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _copy_out(dx), None, None
