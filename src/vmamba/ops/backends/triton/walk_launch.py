"""Choice and launch of the walking kernels. See `walk`."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from vmamba.ops.backends.triton.launch import product_precision, stores_lag
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.routes import routes

#: Tokens of an image up to which the backward pass walks it as one chain.
ONE_CHAIN = 64


def takes(operands: SS2DOperands, backward: bool = False) -> bool:
    """True if the walking kernels compute this; else those for patches do (`ss2d_forward`, `ss2d_backward`).

    They hold one state, load 16 bytes a lane, and give an image's channels to few programs: the map must be small, or
    the images and channels many enough to fill a GPU by themselves. Factors in float32 take twice the registers, which
    are not enough for a large rank, nor for the backward pass of float32.
    """
    x, dbc, rank = operands.x, operands.dbc, operands.dt_weight.shape[2]
    batch, height, width, channels = x.shape
    tokens = height * width
    fills = tokens <= 1024 or batch * channels >= 2048
    fits = tokens * max(height, width, channels) < 2**31
    shaped = operands.A.shape[2] == 1 and channels % 8 == 0 and not routes(operands.pattern)[0].per_line
    narrow = x.element_size() == dbc.element_size() == 2
    wide = x.dtype == dbc.dtype == torch.float32
    ranks = {torch.bfloat16: 64 if tokens <= ONE_CHAIN else 48, torch.float16: 32}  # of which kernels do not spill
    largest = ranks.get(x.dtype, 0) if backward else 32
    stored = (narrow and (rank <= largest or not backward)) or (wide and rank <= largest)
    return shaped and fills and fits and stored


def shape(x: Tensor, steps: int, limit: int, channels: int) -> dict[str, int]:
    """Chains of an image, of about so many steps but at most `limit`; warps (G) and channels (C) of a program."""
    chains, tokens = 1, x.shape[1] * x.shape[2]
    while chains < limit and chains * steps < tokens:
        chains *= 2
    return {"CHAINS": chains, "G": max(1, chains // 16), "C": channels}


def shape_back(x: Tensor, rank: int) -> dict[str, int]:
    """The same for the backward pass; where an image is few chains, the warps `SPLIT` the channels.

    There are as many warps as groups of 8 of the rank + 2 entries of a token, so that each adds up one of them, or at
    most 8: more have too few registers. Up to `ONE_CHAIN` tokens nothing must be composed.
    """
    limit = 128 if rank <= 16 else 32 if rank <= 24 else 8  # with more, kernels spill or wait more
    chosen = shape(x, 25 if x.shape[1] * x.shape[2] > ONE_CHAIN else ONE_CHAIN, limit, 16)
    split = chosen["CHAINS"] <= 16 and rank + 2 > 8
    if split:
        chosen["G"] = min(8, triton.next_power_of_2(triton.cdiv(rank + 2, 8)))
    return chosen | {"SPLIT": split}


def constants(x: Tensor, dbc: Tensor, rank: int, pattern: str) -> dict[str, Any]:
    """The constants that the kernels are specialised for, without their shape."""
    chosen = routes(pattern)
    return {
        "COLUMNS": sum(route.columns << k for k, route in enumerate(chosen)),
        "BACKWARD": sum(route.backward << k for k, route in enumerate(chosen)),
        "K": len(chosen),
        "R": rank,
        "EXACT": x.dtype == torch.float32,
        "PRECISION": product_precision(dbc.dtype),
        "WAITS": stores_lag(),
    }


def sizes(x: Tensor, chains: int) -> tuple[int, ...]:
    """batch, height, width, last channel, steps of a chain, and what `image_order` multiplies by."""
    batch, height, width, channels = x.shape
    return batch, height, width, channels - 1, triton.cdiv(height * width, chains), 2**31 // height + 1
