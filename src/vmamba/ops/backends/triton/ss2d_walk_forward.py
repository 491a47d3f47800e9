"""`ss2d_scan` in Triton for maps that fit a program: forward. See `walk` for the chains.

One program computes C channels of an image, or of several small ones, route after route. It walks all chains at once
from zero states, composes what they end with, and walks again from the states that they start with, adding to y. A
single chain is walked once.

Several states take a step together, so that Δ is computed once for all of them; their tiles are narrow, 8 channels a
warp, for their registers. What binds there are exponentials, two a state, or one where an image is a single chain.

Bytes per token and channel, in the terms of `ss2d_forward`: ``2s + K (R + 2N) s / D``, x and dbc in, y out, the least.
A program reads x of its channels eight times, and reads or writes y seven times; that is in the caches, as far as the
programs at work fit them together (`benchmarks/triton_bounds.py`). The sum over the routes is kept in y, rounded to the
storage type after each of them: in bfloat16 an error of 2.7e-3, relative in norm, where rounding once is 1.6e-3. Kept
in float32, what the programs at work return to would be half as large again, 79 MB in stage 1 of ``vmamba_tiny_s1l8``
at 224², more than an H100's caches hold; and a tensor of such sums moves 1.9 times the least bytes.

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton import walk, walk_launch
from vmamba.ops.backends.triton.launch import launch
from vmamba.ops.backends.triton.tiles import LOG2E, wait_for_stores


@triton.jit(do_not_specialize=["batch", "height", "width", "last_channel", "steps", "inverse"])
def _walk(
    x,
    dbc,
    weight,
    A,
    skip,
    bias,
    y,
    ends,
    batch,
    height,
    width,
    last_channel,
    steps,
    inverse,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    CHAINS: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    WAITS: tl.constexpr,
):
    """The sum over the routes.

    Bytes: x and dbc in, ``s + K (R + 2N) s / D``, y out, ``s``; moved once, all but the first time from the caches.
    """
    PITCH: tl.constexpr = K * (R + 2 * N)
    COPIES: tl.constexpr = 1 if SPLIT else G
    BLOCK: tl.constexpr = C * G // COPIES
    channels = tl.multiple_of(last_channel + 1, C // 4)
    blocks = tl.cdiv(channels, BLOCK)
    first = tl.program_id(0) % blocks * BLOCK
    image = tl.program_id(0) // blocks * (16 * COPIES // CHAINS)
    tokens = height * width
    x += image.to(tl.int64) * tokens * channels
    y += image.to(tl.int64) * tokens * channels
    dbc += image.to(tl.int64) * tokens * PITCH
    ends += tl.program_id(0).to(tl.int64) * ((N + 1) * 16 * G * C)
    number = walk.row_chains(G, SPLIT)
    exists = image + number // CHAINS < batch
    offset = tl.where(exists, number // CHAINS * tokens, 0)
    channel = walk.row_channels(first, G, C, SPLIT)
    inside = channel < channels
    for k in range(K):
        columns, backward = (COLUMNS >> k) & 1, (BACKWARD >> k) & 1
        begin = number % CHAINS * steps
        begin += backward * (CHAINS * steps - 1 - 2 * begin)
        weights = walk.load_weights(weight, dbc, first, channels, k, R, G, C, SPLIT)
        rates = walk.load_rates(A + k * channels * N, first, channels, N, N, G, C, SPLIT)
        beta = walk.load_parameter(bias + k * channels, first, channels, G, C, SPLIT) * LOG2E
        beta = tl.broadcast_to(beta, (G, 16, C))
        passed = walk.load_parameter(skip + k * channels, first, channels, G, C, SPLIT)
        states, total = walk.no_states(N, G, C), tl.zeros((G, 16, C), tl.float32)
        if CHAINS > 1:
            for t in range(steps):
                s = begin + t - 2 * backward * t
                valid = exists & (s < tokens)
                token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
                place, row = walk.row_places(token, channel, channels, C), dbc + token * PITCH + k * (R + 2 * N)
                u = walk.tiles(walk.widened(tl.load(x + place, mask=valid[:, None] & inside, other=0.0)), G, C)
                delta = walk.softplus(walk.project(walk.load_ranks(row, R, G), weights, beta, R, G, PRECISION), EXACT)
                states, _ = walk.step(states, u, delta, rates, row, u, N, R, G, C)
                total += delta
            if N == 1:
                states = (walk.starts(tl.exp2(total * rates[0]), states[0], CHAINS, G, C),)
            else:
                states = walk.starts_of_states(total, states, rates, ends, False, CHAINS, N, G, C, WAITS)
        for t in range(steps):
            s = begin + t - 2 * backward * t
            valid = exists & (s < tokens)
            token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
            place, row = walk.row_places(token, channel, channels, C), dbc + token * PITCH + k * (R + 2 * N)
            mask = valid[:, None] & inside
            u = walk.tiles(walk.widened(tl.load(x + place, mask=mask, other=0.0)), G, C)
            out = walk.tiles(walk.widened(tl.load(y + place, mask=mask & (k > 0), other=0.0)), G, C)
            delta = walk.softplus(walk.project(walk.load_ranks(row, R, G), weights, beta, R, G, PRECISION), EXACT)
            states, out = walk.step(states, u, delta, rates, row, out, N, R, G, C)
            out = tl.fma(u, passed, out)
            tl.store(y + place, walk.rows(out, G, C).to(y.dtype.element_ty), mask=mask)
        wait_for_stores(WAITS)  # another route sums y in other threads


def ss2d_scan(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str) -> Tensor:
    """See `vmamba.ops.ss2d_scan`; for what `walk_launch.takes` says."""
    x, dbc, dt_weight, A, D, dt_bias = (t.contiguous() for t in (x, dbc, dt_weight, A, D, dt_bias))
    y = torch.empty_like(x)
    states = A.shape[2]
    shape = walk_launch.shape(x, states)
    warps, copies = shape["G"], 1 if shape["SPLIT"] else shape["G"]
    programs = triton.cdiv(x.shape[0], 16 * copies // shape["CHAINS"])
    programs *= triton.cdiv(x.shape[3], shape["C"] * warps // copies)
    ends = y
    if states > 1 and shape["CHAINS"] > 1:
        ends = x.new_empty((programs, states + 1, warps, 16, shape["C"]), dtype=torch.float32)
    launch(
        _walk,
        (programs,),
        (x, dbc, dt_weight, A, D, dt_bias, y, ends, *walk_launch.sizes(x, shape["CHAINS"])),
        warps,
        N=states,
        **shape,
        **walk_launch.constants(x, dbc, dt_weight.shape[2], pattern),
    )
    return y
