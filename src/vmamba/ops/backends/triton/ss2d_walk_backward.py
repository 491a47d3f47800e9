"""`ss2d_scan` in Triton for maps that fit a program: backward. See `walk` for the chains.

With the adjoint g of the state and what token t pushes to the one before it, ``p[t] = a[t] g[t]``,

    g[t] = c[t] dy[t] + p[next]                      p[t] = a[t] g[t]

is a scan like that of the states, with the same decays, against the route. A program walks all chains of a route along
it, from zero states; keeps the decayed state and the product of the decays before every token, in memory that only it
uses; and composes the ends of the chains in both directions. Then it walks back with the adjoint, completes the states
by what the chains started with, and has all gradients.

No atomics. A program takes a range of channel blocks of every so many images, and adds up the gradient of dbc over the
blocks, and those of the parameters over the images, where no other program does. The sums over the programs follow in a
fixed order: the same inputs give the same gradients, bit for bit. The sum of dx over the routes is kept in dx, rounded
to the storage type after each of them.

Bytes per token and channel, in the terms of `ss2d_forward`: ``3s + 2 K (R + 2) s / D``, x, dbc and dy in, dx and ddbc
out, the least; ``8 K (R + 2) P / D`` for P ranges of channel blocks, out and in again for the sum; and, the same way,
``8 K R G / T`` for the parameters, T the tokens of the images of a program, G its warps. The rest is in the caches, as
far as the programs at work fit them together.

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton import walk, walk_launch
from vmamba.ops.backends.triton.launch import launch, product_precision
from vmamba.ops.backends.triton.tiles import LOG2E

#: Programs that nearly fill a large GPU; more would leave more partial sums, whose bytes would bind.
ENOUGH_PROGRAMS = 256


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
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT: tl.constexpr,
    WAITS: tl.constexpr,
):
    """All gradients of every so many of the groups of images, for `blocks` blocks of channels.

    Bytes: dy, x and dbc in, ``2s + K (R + 2) s / D``, dx and ddbc out, ``s + 4 K (R + 2) P / D``, and the gradients of
    the parameters, ``4 K R G / T``; moved once, all but the first time from the caches, where `kept` stays.
    """
    PITCH: tl.constexpr = K * (R + 2)
    IMAGES: tl.constexpr = 16 * G // CHAINS
    channels = tl.multiple_of(last_channel + 1, C // 4)
    tokens = height * width
    parts = tl.cdiv(tl.cdiv(channels, C), blocks)
    part, program = tl.program_id(0) % parts, tl.program_id(0) // parts
    mine = tl.minimum(blocks, tl.cdiv(channels, C) - part * blocks)
    programs = tl.num_programs(0) // parts
    turns = tl.cdiv(groups - program, programs)
    number = walk.row_chains(G)
    own = tl.arange(0, 16 * G)[:, None] * C + tl.arange(0, C)[None, :]
    own = tl.max_contiguous(tl.multiple_of(own, (1, C // 4)), (1, C // 4))
    kept += tl.program_id(0).to(tl.int64) * (steps * 32 * G * C)
    # One loop and not three: what stays the same over the routes or blocks would be kept in registers.
    for visit in range(turns * mine * K):
        k, block, turn = visit % K, visit // K % mine, visit // (K * mine)
        columns, backward = (COLUMNS >> k) & 1, (BACKWARD >> k) & 1
        first = (part * blocks + block) * C
        image = (program + turn * programs) * IMAGES
        here = image.to(tl.int64) * tokens
        exists = image + number // CHAINS < batch
        offset = tl.where(exists, number // CHAINS * tokens, 0)
        begin = number % CHAINS * steps
        begin += backward * (CHAINS * steps - 1 - 2 * begin)
        inside = (first + tl.arange(0, C) < channels)[None, :]
        entries = dbc + here * PITCH + k * (R + 2)
        dentries = ddbc + (part.to(tl.int64) * batch * tokens + here) * PITCH + k * (R + 2)
        weights = walk.load_weights(weight, dbc, first, channels, k, R, G, C)
        rate = walk.load_parameter(A + k * channels, first, channels, G, C)
        beta = walk.load_parameter(bias + k * channels, first, channels, G, C) * LOG2E
        beta = tl.broadcast_to(beta, (G, 16, C))
        h, pushed = tl.zeros((G, 16, C), tl.float32), tl.zeros((G, 16, C), tl.float32)
        product, dpassed = h + 1.0, h
        for t in range(steps):
            s = begin + t - 2 * backward * t
            valid = exists & (s < tokens)
            token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
            place, row = walk.row_places(token, first, channels, C), entries + token * PITCH
            mask = valid[:, None] & inside
            u = walk.tiles(tl.load(x + here * channels + place, mask=mask, other=0.0).to(tl.float32), G, C)
            v = walk.tiles(tl.load(dy + here * channels + place, mask=mask, other=0.0).to(tl.float32), G, C)
            ranks = walk.load_ranks(row, R, G)
            delta = walk.softplus(walk.project(ranks, weights, beta, R, G, PRECISION), EXACT)
            b, c = walk.load_pair(row, R, G)
            decay = tl.exp2(delta * rate)
            carried = decay * h
            product *= decay
            dpassed = tl.fma(u, v, dpassed)
            h = tl.fma(delta, u * walk.over_channels(b * walk.LN2, G, C), carried)
            pushed = tl.fma(product, v * walk.over_channels(c, G, C), pushed)
            mine_now = kept + t * (32 * G * C) + own
            tl.store(mine_now, walk.rows(carried, G, C).to(kept.dtype.element_ty))
            tl.store(mine_now + 16 * G * C, walk.rows(product, G, C).to(kept.dtype.element_ty))
        parameters, pitch = program.to(tl.int64) * G * (K * channels), K * channels
        known = parameters + k * channels
        if k == 0:  # the same for all routes
            walk.add_parameter(
                dskip + program.to(tl.int64) * G * channels, dpassed, first, channels, channels, turn, G, C
            )
        start = walk.starts(product, h, CHAINS, G, C, False)
        pushed = walk.starts(product, pushed, CHAINS, G, C, True)
        passed = walk.load_parameter(skip + k * channels, first, channels, G, C)
        back = walk.load_transposed(transposed, x, first, channels, k, R, G, C)
        dw = walk.no_gradients(R, G, C)
        drate = tl.zeros((G, 16, C), tl.float32)
        for i in range(steps):
            t = steps - 1 - i
            s = begin + t - 2 * backward * t
            valid = exists & (s < tokens)
            token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
            place, row = walk.row_places(token, first, channels, C), entries + token * PITCH
            mask = valid[:, None] & inside
            mine_now = kept + t * (32 * G * C) + own
            carried = walk.tiles(tl.load(mine_now).to(tl.float32), G, C)
            product = walk.tiles(tl.load(mine_now + 16 * G * C).to(tl.float32), G, C)
            carried = tl.fma(product, start, carried)
            u = walk.tiles(tl.load(x + here * channels + place, mask=mask, other=0.0).to(tl.float32), G, C)
            v = walk.tiles(tl.load(dy + here * channels + place, mask=mask, other=0.0).to(tl.float32), G, C)
            du = walk.tiles(tl.load(dx + here * channels + place, mask=mask & (k > 0), other=0.0).to(tl.float32), G, C)
            ranks = walk.load_ranks(row, R, G)
            z = walk.project(ranks, weights, beta, R, G, PRECISION)
            delta = walk.softplus(z, EXACT)
            slope, decay = tl.exp2(z - delta), tl.exp2(delta * rate)
            delta *= walk.LN2
            b, c = walk.load_pair(row, R, G)
            b, c = walk.over_channels(b, G, C), walk.over_channels(c, G, C)
            adjoint = tl.fma(v, c, pushed)
            pushed = decay * adjoint
            through_decay = adjoint * carried
            drate = tl.fma(through_decay, delta, drate)
            weighted = adjoint * delta
            du = tl.fma(v, passed, tl.fma(weighted, b, du))
            tl.store(dx + here * channels + place, walk.rows(du, G, C).to(dx.dtype.element_ty), mask=mask)
            dz = tl.fma(adjoint, u * b, through_decay * rate) * slope
            drow = dentries + token * PITCH
            db, dc = weighted * u, v * tl.fma(delta, u * b, carried)
            dw = walk.project_back(ranks, drow, valid, dz, db, dc, x, back, dw, block, R, G, C, GRADIENT)
        walk.add_parameter(dA + known, drate, first, channels, pitch, turn, G, C)
        walk.add_bias(dbias + known, dw, first, channels, pitch, turn, R, G, C)
        walk.add_weights(dweight + parameters * R, dw, first, channels, k, pitch * R, turn, R, G, C)
        walk.wait_for_stores(WAITS)  # another route sums dx in other threads


def ss2d_scan_backward(
    dy: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), the first of x's dtype, the others float32."""
    dy, x, dbc, dt_weight, A, D, dt_bias = (t.contiguous() for t in (dy, x, dbc, dt_weight, A, D, dt_bias))
    batch, _, _, channels = x.shape
    rank = dt_weight.shape[2]
    limit = 128 if rank <= 16 else 32 if rank <= 32 else 16  # with a larger rank, more warps spill on AMD's GPUs
    shape = walk_launch.shape(x, 25, limit, 16)
    sizes = walk_launch.sizes(x, shape["CHAINS"])
    rows = 16 * shape["G"]
    blocks = triton.cdiv(channels, shape["C"])
    groups = triton.cdiv(batch, rows // shape["CHAINS"])
    programs = min(groups, ENOUGH_PROGRAMS)
    per_part = triton.cdiv(blocks, min(blocks, triton.cdiv(ENOUGH_PROGRAMS, programs)))
    parts = triton.cdiv(blocks, per_part)

    def partial(count: int, *shape: int) -> Tensor:
        return x.new_empty((count, *shape), dtype=torch.float32)

    dx = torch.empty_like(x)
    ddbc = partial(parts, *dbc.shape)
    copies = programs * shape["G"]
    dweight, dA = partial(copies, *dt_weight.shape), partial(copies, *A.shape)
    dskip, dbias = partial(copies, channels), partial(copies, *dt_bias.shape)
    kept = x.new_empty((programs * parts, sizes[4], 2, rows, shape["C"]))
    launch(
        _walk_back,
        (programs * parts,),
        (
            *(dy, x, dbc, dt_weight, dt_weight.mT.contiguous(), A, D, dt_bias),
            *(dx, ddbc, dweight, dA, dskip, dbias, kept, *sizes, per_part, groups),
        ),
        shape["G"],
        GRADIENT=product_precision(x.dtype),
        **shape,
        **walk_launch.constants(x, dbc, rank, pattern),
    )
    return dx, ddbc.sum(0), dweight.sum(0), dA.sum(0), dskip.sum(0).repeat(len(D), 1), dbias.sum(0)
