"""Random operands of the scans."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.ops.routes import PATTERNS


def ss2d_operands(
    batch: int,
    height: int,
    width: int,
    channels: int,
    states: int,
    rank: int,
    pattern: str,
    dtype: torch.dtype = torch.float64,
    step: float = -2.0,
) -> list[Tensor]:
    """x, dbc, dt_weight, A, D, dt_bias; `step` is the mean of Δ before softplus."""
    generator = torch.Generator().manual_seed(height * 1000 + width * 10 + states)
    count = len(PATTERNS[pattern])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return [
        t.to(dtype)
        for t in (
            normal(batch, height, width, channels),
            normal(batch, height, width, count, rank + 2 * states),
            normal(count, channels, rank) * rank**-0.5,
            -torch.exp(normal(count, channels, states)),
            normal(count, channels),
            normal(count, channels) + step,
        )
    ]


def selective_operands(
    batch: int, channels: int, length: int, states: int, groups: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length * 10 + states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        name: t.to(dtype)
        for name, t in {
            "u": normal(batch, channels, length),
            "delta": normal(batch, channels, length),
            "A": -torch.exp(normal(channels, states)),
            "B": normal(batch, groups, states, length),
            "C": normal(batch, groups, states, length),
            "D": normal(channels),
            "delta_bias": normal(channels) - 2,
        }.items()
    }
