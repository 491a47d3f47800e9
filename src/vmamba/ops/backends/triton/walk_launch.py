"""Choice and launch of the walking kernels. See `walk`."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from vmamba.ops.backends.triton.launch import product_precision, stores_lag
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.routes import routes

#: Tokens of an image up to which the backward pass walks it as one chain.
ONE_CHAIN = 64
#: Numbers of states that they walk with.
STATES = (1, 2, 4, 8, 16)
#: Warps that fill a large GPU, as many registers as they have; more would only leave more partial sums.
ENOUGH_WARPS = 1024


def takes(operands: SS2DOperands, backward: bool = False) -> bool:
    """True if the walking kernels compute this; else those for patches do (`ss2d_forward`, `ss2d_backward`).

    They hold a power of two of states up to 16, load 16 bytes a lane (4, forward with several states), and give an
    image's channels to few programs: the map must be small, or the images and channels many enough to fill a GPU by
    themselves. Factors in float32 take twice the registers, which are not enough for a large rank, nor for the backward
    pass of float32, nor of float16 with several states.
    """
    x, dbc, rank = operands.x, operands.dbc, operands.dt_weight.shape[2]
    batch, height, width, channels = x.shape
    tokens = height * width
    fills = tokens <= 1024 or batch * channels >= 2048
    fits = tokens * max(height, width, channels) < 2**31
    states = operands.A.shape[2]
    shaped = states in STATES and channels % 8 == 0
    whole = not routes(operands.pattern)[0].per_line
    narrow = x.element_size() == dbc.element_size() == 2
    wide = x.dtype == dbc.dtype == torch.float32
    several = 48 if states == 1 else 32
    ranks = {torch.bfloat16: 64 if tokens <= ONE_CHAIN else several}  # of which kernels do not spill
    ranks |= {torch.float16: 32} if states == 1 else {}
    largest = ranks.get(x.dtype, 0) if backward else 32 if states == 1 else 16
    stored = (narrow and (rank <= largest or not backward)) or (wide and rank <= largest)
    return shaped and whole and fills and fits and stored


def _chains(x: Tensor, steps: int, limit: int) -> int:
    """Chains of an image, of about so many steps but at most `limit`."""
    chains, tokens = 1, x.shape[1] * x.shape[2]
    while chains < limit and chains * steps < tokens:
        chains *= 2
    return chains


def shape(x: Tensor, states: int) -> dict[str, Any]:
    """Chains of an image; warps (G) of a program; channels (C) of a program, or of each warp where they `SPLIT` them.

    A single chain saves the walk to its end, which with several states is nearly half of all there is to compute. So
    they are as few as leave every second of `ENOUGH_WARPS` one, or as give all of them one; and one program takes
    channels enough for 64 bytes of a token.
    """
    if states == 1:
        chains = _chains(x, 13, 128)
        return {"CHAINS": chains, "G": max(1, chains // 16), "C": 64 // x.element_size(), "SPLIT": False}
    warps = x.shape[0] * x.shape[3] / 128  # with one chain an image
    few = 1 if 2 * warps >= ENOUGH_WARPS else triton.next_power_of_2(math.ceil(ENOUGH_WARPS / warps))
    return {"CHAINS": min(few, _chains(x, 13, 16)), "G": 4, "C": 8, "SPLIT": True}


def shape_back(x: Tensor, rank: int, states: int) -> dict[str, Any]:
    """The same for the backward pass; where an image is few chains, the warps `SPLIT` the channels.

    There are as many warps as groups of 8 of the rank + 2 entries of a token, so that each adds up one of them, or at
    most 8: more have too few registers. Up to `ONE_CHAIN` tokens nothing must be composed. Of several states so many
    are taken `AT_ONCE`; where channels are many and images few chains, 8 warps are as much work at once as two programs
    of 4, and leave half as many sums.
    """
    if states > 1:
        chains = _chains(x, 25 if x.shape[1] * x.shape[2] > ONE_CHAIN else ONE_CHAIN, 16)
        warps = 8 if x.shape[3] >= 768 and (chains == 1 or rank <= 24) else 4  # else kernels spill
        return {"CHAINS": chains, "G": warps, "C": 16, "SPLIT": True, "AT_ONCE": min(4, states)}
    limit = 128 if rank <= 16 else 32 if rank <= 24 else 8  # with more, kernels spill or wait more
    chains = _chains(x, 25 if x.shape[1] * x.shape[2] > ONE_CHAIN else ONE_CHAIN, limit)
    split = chains <= 16 and rank + 2 > 8
    warps = min(8, triton.next_power_of_2(triton.cdiv(rank + 2, 8))) if split else max(1, chains // 16)
    return {"CHAINS": chains, "G": warps, "C": 16, "SPLIT": split}


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
