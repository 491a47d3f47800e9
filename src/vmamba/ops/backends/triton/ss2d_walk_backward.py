"""`ss2d_scan` in Triton for maps that fit a program: backward. See `walk` for the chains.

With the adjoint g of the state and what token t pushes to the one before it, ``p[t] = a[t] g[t]``,

    g[t] = c[t] dy[t] + p[next]                      p[t] = a[t] g[t]

is a scan like that of the states, with the same decays, against the route. A program walks all chains of a route along
it, from zero states; keeps the decayed state and the product of the decays before every token, in memory that only it
uses; and composes the ends of the chains in both directions. Then it walks back with the adjoint, completes the states
by what the chains started with, and has all gradients. Δ is of base 2 in `walk`, and the kernel has ln(2) g in the
place of g: their product is that of Δ and g, and only dz is ln(2) times too small, for which its factors make up.

No atomics. A program takes a range of channel blocks of every so many images, and adds up the gradient of dbc over the
blocks, and those of the parameters over the images, where no other program does. The sums over the programs follow in a
fixed order: the same inputs give the same gradients, bit for bit. Where images are small and channels many, the warps
of a program hold different channels of the same chains (`SPLIT`), so that the gradient of dbc leaves it as one sum of
more of them. The sum of dx over the routes is kept in float32 and rounded once.

Bytes per token and channel, in the terms of `ss2d_forward`: ``3s + 2 K (R + 2) s / D``, x, dbc and dy in, dx and ddbc
out, the least; ``8 K (R + 2) P / D`` for P > 1 ranges of channel blocks, out and in again for the sum; and, the same
way, ``8 K R G / T`` for the parameters, T the tokens of the images of a program, G its warps, or 1 where they split.
The rest is in the caches, as far as the programs at work fit them together.

P trades bytes for programs: 7 × 7 tokens of 128 images are 16 programs with P = 2, whose sums take as many bytes as all
else; with P = 6, 48 programs and half as many bytes again. Which is faster only a GPU can tell.

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton import walk, walk_gradients, walk_launch
from vmamba.ops.backends.triton.launch import launch, product_precision
from vmamba.ops.backends.triton.ss2d_walk_back_states import _walk_back_states
from vmamba.ops.backends.triton.sums import sum_parts
from vmamba.ops.backends.triton.tiles import LOG2E, wait_for_stores

#: Bytes of partial sums that stay in its caches until they are added up.
CACHED = 8 * 2**20


@triton.jit(do_not_specialize=["batch", "height", "width", "last_channel", "steps", "inverse", "blocks", "groups"])
def _walk_back(
    dy,
    x,
    dbc,
    weight,
    transposed,
    A,
    skip,
    bias,
    dx,
    ddbc,
    dweight,
    dA,
    dskip,
    dbias,
    kept,
    sums,
    batch,
    height,
    width,
    last_channel,
    steps,
    inverse,
    blocks,
    groups,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    CHAINS: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT: tl.constexpr,
    WAITS: tl.constexpr,
):
    """All gradients of every so many of the groups of images, for `blocks` blocks of channels.

    Bytes: dy, x and dbc in, ``2s + K (R + 2) s / D``, dx and ddbc out, ``s + 4 K (R + 2) P / D``, and the gradients of
    the parameters, ``4 K R G / T``; moved once, all but the first time from the caches, where `kept` and `sums` stay.
    """
    PITCH: tl.constexpr = K * (R + 2)
    COPIES: tl.constexpr = 1 if SPLIT else G
    IMAGES: tl.constexpr = 16 * COPIES // CHAINS
    BLOCK: tl.constexpr = C * G // COPIES
    KEPT: tl.constexpr = (16 if CHAINS == 1 else 32) * G * C
    channels = tl.multiple_of(last_channel + 1, C // 4)
    tokens = height * width
    parts = tl.cdiv(tl.cdiv(channels, BLOCK), blocks)
    part, program = tl.program_id(0) % parts, tl.program_id(0) // parts
    mine = tl.minimum(blocks, tl.cdiv(channels, BLOCK) - part * blocks)
    programs = tl.num_programs(0) // parts
    turns = tl.cdiv(groups - program, programs)
    number = walk.row_chains(G, SPLIT)
    own = tl.arange(0, 16 * G)[:, None] * C + tl.arange(0, C)[None, :]
    own = tl.max_contiguous(tl.multiple_of(own, (1, C // 4)), (1, C // 4))
    kept += tl.program_id(0).to(tl.int64) * (steps * KEPT)
    sums += tl.program_id(0).to(tl.int64) * (tokens * IMAGES * BLOCK)
    # One loop and not three: what stays the same over the routes or blocks would be kept in registers.
    for visit in range(turns * mine * K):
        k, block, turn = visit % K, visit // K % mine, visit // (K * mine)
        columns, backward = (COLUMNS >> k) & 1, (BACKWARD >> k) & 1
        first = (part * blocks + block) * BLOCK
        image = (program + turn * programs) * IMAGES
        here = image.to(tl.int64) * tokens
        exists = image + number // CHAINS < batch
        offset = tl.where(exists, number // CHAINS * tokens, 0)
        begin = number % CHAINS * steps
        begin += backward * (CHAINS * steps - 1 - 2 * begin)
        channel = walk.row_channels(first, G, C, SPLIT)
        inside = channel < channels
        column = walk.row_channels(0, G, C, SPLIT)
        entries = dbc + here * PITCH + k * (R + 2)
        dentries = ddbc + (part.to(tl.int64) * batch * tokens + here) * PITCH + k * (R + 2)
        weights = walk.load_weights(weight, dbc, first, channels, k, R, G, C, SPLIT)
        rate = walk.load_parameter(A + k * channels, first, channels, G, C, SPLIT)
        beta = walk.load_parameter(bias + k * channels, first, channels, G, C, SPLIT) * LOG2E
        beta = walk.settled(beta, G, C)
        if CHAINS > 1:  # a single one leaves few registers
            rate = walk.settled(rate, G, C)
        h, pushed = tl.zeros((G, 16, C), tl.float32), tl.zeros((G, 16, C), tl.float32)
        product, dpassed = h + 1.0, h
        for t in range(steps):
            s = begin + t - 2 * backward * t
            valid = exists & (s < tokens)
            token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
            place, row = walk.row_places(token, channel, channels, C), entries + token * PITCH
            mask = valid[:, None] & inside
            u = walk.tiles(walk.widened(tl.load(x + here * channels + place, mask=mask, other=0.0)), G, C)
            ranks = walk.load_ranks(row, R, G)
            delta = walk.softplus(walk.project(ranks, weights, beta, R, G, PRECISION), EXACT)
            b, c = walk.load_pair(row, R, G)
            decay = tl.exp2(delta * rate)
            carried = decay * h
            h = tl.fma(delta, u * walk.over_channels(b * walk.LN2, G, C), carried)
            mine_now = kept + t * KEPT + own
            tl.store(mine_now, walk.rows(carried, G, C).to(kept.dtype.element_ty))
            if CHAINS > 1:
                v = walk.tiles(walk.widened(tl.load(dy + here * channels + place, mask=mask, other=0.0)), G, C)
                product *= decay
                pushed = tl.fma(product, v * walk.over_channels(c, G, C), pushed)
                tl.store(mine_now + 16 * G * C, walk.rows(product, G, C).to(kept.dtype.element_ty))
        parameters, pitch = program.to(tl.int64) * COPIES * (K * channels), K * channels
        known = parameters + k * channels
        start = pushed
        if CHAINS > 1:
            start, pushed = walk.starts_and_ends(product, h, pushed, CHAINS, G, C)
            pushed *= walk.LN2
        passed = walk.load_parameter(skip + k * channels, first, channels, G, C, SPLIT)
        back = walk_gradients.load_transposed(weight, transposed, x, first, channels, k, R, G, C, SPLIT)
        dw = walk_gradients.no_gradients(R, G, C)
        drate = tl.zeros((G, 16, C), tl.float32)
        for i in range(steps):
            t = steps - 1 - i
            s = begin + t - 2 * backward * t
            valid = exists & (s < tokens)
            token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
            place, row = walk.row_places(token, channel, channels, C), entries + token * PITCH
            mask = valid[:, None] & inside
            mine_now = kept + t * KEPT + own
            carried = walk.tiles(walk.widened(tl.load(mine_now)), G, C)
            if CHAINS > 1:
                product = walk.tiles(walk.widened(tl.load(mine_now + 16 * G * C)), G, C)
                carried = tl.fma(product, start, carried)
            u = walk.tiles(walk.widened(tl.load(x + here * channels + place, mask=mask, other=0.0)), G, C)
            v = walk.tiles(walk.widened(tl.load(dy + here * channels + place, mask=mask, other=0.0)), G, C)
            sum_place = walk.row_places(token, column, BLOCK, C)
            du = walk.tiles(tl.load(sums + sum_place, mask=mask & (k > 0), other=0.0), G, C)
            ranks = walk.load_ranks(row, R, G)
            z = walk.project(ranks, weights, beta, R, G, PRECISION)
            delta = walk.softplus(z, EXACT)
            slope, decay = tl.exp2(z - delta), tl.exp2(delta * rate)
            b, c = walk.load_pair(row, R, G)
            adjoint = tl.fma(v, walk.over_channels(c * walk.LN2, G, C), pushed)
            pushed = decay * adjoint
            through_decay = adjoint * carried
            drate = tl.fma(through_decay, delta, drate)
            dpassed = tl.fma(u, v, dpassed)
            weighted, pulled = u * delta, adjoint * walk.over_channels(b, G, C)
            du = tl.fma(v, passed, tl.fma(pulled, delta, du))
            du = walk.rows(du, G, C)
            tl.store(sums + sum_place, du, mask=mask)
            tl.store(dx + here * channels + place, du.to(dx.dtype.element_ty), mask=mask & (k == K - 1))
            dz = tl.fma(pulled, u, through_decay * rate) * slope
            drow = dentries + token * PITCH
            db, dc = adjoint * weighted, v * tl.fma(weighted, walk.over_channels(b * walk.LN2, G, C), carried)
            dw = walk_gradients.project_back(
                ranks, drow, valid, dz, db, dc, x, back, dw, block, R, G, C, SPLIT, GRADIENT
            )
        if k == 0:  # the same for all routes
            same = dskip + program.to(tl.int64) * COPIES * channels
            walk_gradients.add_parameter(same, dpassed, first, channels, channels, turn, G, C, SPLIT)
        walk_gradients.add_parameter(dA + known, drate, first, channels, pitch, turn, G, C, SPLIT)
        walk_gradients.add_bias(dbias + known, dw, first, channels, pitch, turn, R, G, C, SPLIT)
        walk_gradients.add_weights(dweight + parameters * R, dw, first, channels, k, pitch * R, turn, R, G, C, SPLIT)
        wait_for_stores(WAITS)  # another route adds to the sums in other threads


def max_parts(x: Tensor, dbc: Tensor, parameters: int, copies: int) -> int:
    """Most ranges of channel blocks: their sums of ddbc stay in the caches, or twice as much moves as must, in all.

    Beside them move so many copies of the gradients of the parameters, out and in again for their sum.
    """
    minimum = 3 * x.numel() * x.element_size() + 2 * dbc.numel() * dbc.element_size()
    return max(1, CACHED // (4 * dbc.numel()), (minimum - 8 * (copies - 1) * parameters) // (8 * dbc.numel()))


def ss2d_scan_backward(
    dy: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), the first of x's dtype, the second of dbc's or float32."""
    dy, x, dbc, dt_weight, A, D, dt_bias = (t.contiguous() for t in (dy, x, dbc, dt_weight, A, D, dt_bias))
    batch, height, width, channels = x.shape
    rank, states = dt_weight.shape[2], A.shape[2]
    shape = walk_launch.shape_back(x, rank, states)
    sizes = walk_launch.sizes(x, shape["CHAINS"])
    warps, copies = shape["G"], 1 if shape["SPLIT"] else shape["G"]
    images, block = 16 * copies // shape["CHAINS"], shape["C"] * warps // copies
    blocks, groups = triton.cdiv(channels, block), triton.cdiv(batch, images)
    programs = min(groups, triton.cdiv(walk_launch.ENOUGH_WARPS, warps))
    wanted = triton.cdiv(walk_launch.ENOUGH_WARPS, programs * warps)
    copies *= programs
    parameters = dt_weight.numel() + A.numel() + dt_bias.numel() + channels
    per_part = triton.cdiv(blocks, min(blocks, wanted, max_parts(x, dbc, parameters, copies)))
    parts = triton.cdiv(blocks, per_part)

    def partial(count: int, *shape: int) -> Tensor:
        return x.new_empty((count, *shape), dtype=torch.float32)

    dx = torch.empty_like(x)
    ddbc = partial(parts, *dbc.shape)
    dweight, dA = partial(copies, *dt_weight.shape), partial(copies, len(D), states, channels)
    dskip, dbias = partial(copies, channels), partial(copies, *dt_bias.shape)
    lanes, of_image = 16 * warps * shape["C"], images * height * width * block
    if states == 1:
        kept = x.new_empty((programs * parts, sizes[4], min(2, shape["CHAINS"]), lanes))
        transposed = dt_weight if shape["SPLIT"] else dt_weight.mT.contiguous()
        operands = (dy, x, dbc, dt_weight, transposed, A, D, dt_bias)
        memory = (kept, partial(programs * parts, of_image))
    else:
        operands = (dy, x, dbc, dt_weight, A, D, dt_bias)
        at_once = shape["AT_ONCE"]
        memory = (partial(programs * parts, (3 * at_once + 2 + sizes[4] * (2 + at_once)) * lanes + of_image),)
    results = (dx, ddbc, dweight, dA, dskip, dbias, *memory)
    launch(
        _walk_back if states == 1 else _walk_back_states,
        (programs * parts,),
        (*operands, *results, *sizes, per_part, groups),
        warps,
        GRADIENT=product_precision(x.dtype),
        **shape,
        **({} if states == 1 else {"N": states}),
        **walk_launch.constants(x, dbc, rank, pattern),
    )
    ddbc = sum_parts(ddbc, dbc.dtype)
    return dx, ddbc, dweight.sum(0), dA.sum(0).mT, dskip.sum(0).repeat(len(D), 1), dbias.sum(0)
