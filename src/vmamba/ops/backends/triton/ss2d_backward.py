"""`ss2d_scan` in Triton: backward.

With the adjoint g of the state (see `reference`) and ``p[t] = a[t] g[t]``, what token t pushes to the one before it,

    p[t] = a[t] (c[t] dy[t] + p[next])          g[t] = c[t] dy[t] + p[next]

is a scan like that of the states, with the same decays, against the route. So the same kernels prepare it: Σ Δ, end
state and pushed adjoint of every segment, composed along each route in both directions. `_gradients` then computes the
states of a patch again from there, and all gradients, which nothing was kept for in the forward pass.

No atomics. A program walks over a range of channel blocks and adds up the gradient of dbc of its patch in memory that
no other program touches; ranges, and the patches' shares of the parameters' gradients, are summed afterwards in a fixed
order. The same inputs give the same gradients, bit for bit.

Bytes per token and channel, in the terms of `ss2d_scan`, with patches of 8 × 8:

- what must move: ``3s + 2 K (R + 2N) s / D`` [7.3], x, dbc and dy in, dx and ddbc out (parameters are small);
- `_gradients` with one patch: x, dbc, dy in, dx out, ``8 K (R + 2N) S / D`` for S ranges of channels [S = 1: 2.7] out
  and in again for the sum, and ``8 K (R + N + 1) / T`` for the parameters, T the tokens of a program [batch 128: 0.7];
  the sums of a patch and of a program are added up in the caches;
- with more patches, the segments: as in the forward pass, with dy read and pushed adjoints written and read [26.7].

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton import ss2d_forward as ss2d_kernels
from vmamba.ops.backends.triton.launch import launch, product_precision, stores_lag
from vmamba.ops.backends.triton.tiles import (
    LOG2E,
    RANKS,
    add,
    flat_tokens,
    in_tile,
    line_starts,
    load_rank,
    load_weight,
    project,
    softplus,
    softplus_slope,
    states,
    wait_for_stores,
)
from vmamba.ops.routes import routes

#: Programs that fill a large GPU a few times over; more would only leave more partial sums.
ENOUGH_PROGRAMS = 1024

#: Side of a patch, channels of a block, and warps: one thread for every line and channel. Larger patches spill.
TILE = (8, 16, 4)


@triton.jit(do_not_specialize=(*ss2d_kernels.SIZES, "batch", "patches", "blocks", "last_cell"))
def _gradients(
    dy,
    x,
    dbc,
    weight,
    A,
    skip,
    bias,
    starts,
    pushed,
    dx,
    ddbc,
    dweight,
    dA,
    dskip,
    dbias,
    scratch,
    batch,
    height,
    width,
    last_channel,
    segments,
    patches,
    blocks,
    last_cell,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    PER_LINE: tl.constexpr,
    SINGLE: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT: tl.constexpr,
    WAITS: tl.constexpr,
):
    """All gradients of every so many patches, for `blocks` blocks of channels.

    Every route reads the tile in its own order, from the caches after the first time, so that all of them run forward
    and share one loop: unrolled, values of several routes would be in registers at once, more than there are. The sum
    over the routes is kept in `scratch`, in rows of `last_cell` + 1 entries: no constant, or the compiler would choose
    wide accesses, and exchange the tile between threads for them.

    Bytes: x, dy, dbc, starts and pushed in, ``2s + K (R + 2N) s / D + 8 K N / P`` (the last not with SINGLE); dx and
    ddbc out, ``s + 4 K (R + 2N) S / D`` for S ranges, and the parameters' shares, ``4 K (R + N + 1) / T`` for T tokens
    of a program. Moved once, as far as the caches hold what a program returns to: the tile and `scratch` for every
    route, ddbc of the patch for every block of channels, the shares for every patch.
    """
    channels, pitch = last_channel + 1, last_cell + 1
    part, program = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    scratch += (program * tl.num_programs(0) + part) * (P * P * BLOCK)
    first_block = tl.program_id(0) * blocks
    across, down = tl.cdiv(width, P), tl.cdiv(height, P)
    mine = tl.minimum(blocks, tl.cdiv(channels, BLOCK) - first_block)
    turns = tl.cdiv(patches * batch - tl.program_id(1), tl.num_programs(1))
    # One loop and not three: what stays the same over the routes or blocks would be kept in registers.
    for visit in range(turns * mine * K):
        k, block, turn = visit % K, visit // K % mine, visit // (K * mine)
        item = tl.program_id(1) + turn * tl.num_programs(1)
        image, patch = (item // patches).to(tl.int64), item % patches
        top, left = patch // across * P, patch % across * P
        tokens = image * height * width
        here = dbc + tokens * (K * (R + 2 * N))
        dhere = ddbc + (part * batch * height * width + tokens) * (K * (R + 2 * N))
        channel = (first_block + block) * BLOCK + tl.arange(0, BLOCK)
        exists = channel < channels
        columns, backward = (COLUMNS >> k) & 1, (BACKWARD >> k) & 1
        order = backward * (P - 1) + (1 - 2 * backward) * tl.arange(0, P)
        step, line = order[:, None], order[None, :]
        h, w = top + line + columns * (step - line), left + step + columns * (line - step)
        token, valid = h * width + w, (h < height) & (w < width)
        inside = valid[:, :, None] & exists[None, None, :]
        place = in_tile(token, channel, channels, BLOCK)
        flat, known = flat_tokens(patch, height, width, columns, backward, P)
        z = project(flat, known, here, weight, bias, channel, channels, k, K, N, R, P, BLOCK, PRECISION)
        u = tl.load(x + tokens * channels + place, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(dy + tokens * channels + place, mask=inside, other=0.0).to(tl.float32)
        if k == 0:
            total = tl.sum(tl.sum(u * v, 0), 0)
            add(dskip + program * channels + channel, total, exists, turn)
        delta = tl.where(valid[:, :, None], softplus(z), 0.0)
        weighted = delta * u
        dweighted, ddelta = tl.zeros_like(delta), tl.zeros_like(delta)
        for n in range(N):
            parameter = (k * channels + channel) * N + n
            rate = tl.load(A + parameter, mask=exists, other=0.0).to(tl.float32)
            row = token * (K * (R + 2 * N)) + (k * (R + 2 * N) + R + n)
            b = tl.load(here + row, mask=valid, other=0.0).to(tl.float32)
            c = tl.load(here + row + N, mask=valid, other=0.0).to(tl.float32)
            decay = tl.exp2(delta * (rate * LOG2E)[None, None, :])
            vertical = (left + order) * down + patch // across
            segment = tl.where(columns == 1, vertical, (top + order) * across + patch % across)
            kept = tl.where(columns == 1, left + order < width, top + order < height)[:, None] & exists[None, :]
            edge = segment[:, None] * channels + channel[None, :]
            route = ((image * K + k) * N + n) * segments * channels
            start, end = tl.zeros([P, BLOCK], tl.float32), tl.zeros([P, BLOCK], tl.float32)
            drive, pull = weighted * b[:, :, None], v * c[:, :, None]
            if not SINGLE:
                start = tl.load(starts + route + edge, mask=kept, other=0.0)
                end = tl.load(pushed + route + edge, mask=kept, other=0.0)
            elif not PER_LINE:
                start = line_starts(decay, drive, P, False)
                end = line_starts(decay, decay * pull, P, True)
            carried = decay * states(decay, drive, start, P, False)
            add(dhere + row + N, tl.sum(v * (carried + drive), 2), valid, block)
            tl.debug_barrier()  # the states before the adjoints: registers are scarce
            adjoint = pull + states(decay, decay * pull, end, P, True)
            add(dhere + row, tl.sum(adjoint * weighted, 2), valid, block)
            dweighted = tl.fma(adjoint, b[:, :, None], dweighted)
            through_decay = adjoint * carried
            ddelta = tl.fma(through_decay, rate[None, None, :], ddelta)
            total = tl.sum(tl.sum(through_decay * delta, 0), 0)
            add(dA + program * channels * (K * N) + parameter, total, exists, turn)
        passed = tl.load(skip + k * channels + channel, mask=exists, other=0.0).to(tl.float32)
        du = tl.fma(v, passed[None, None, :], dweighted * delta)
        cell = in_tile((h - top) * P + (w - left), tl.arange(0, BLOCK), pitch, BLOCK)
        du += tl.load(scratch + cell, mask=inside & (k > 0), other=0.0)
        tl.store(scratch + cell, du, mask=inside & (k < K - 1))
        tl.store(dx + tokens * channels + place, du.to(dx.dtype.element_ty), mask=inside & (k == K - 1))
        dz = tl.fma(dweighted, u, ddelta) * softplus_slope(delta)
        parameter = (program * K + k) * channels + channel
        add(dbias + parameter, tl.sum(tl.sum(dz, 0), 0), exists, turn)
        dz = tl.reshape(dz, (P * P, BLOCK))
        for first in tl.range(0, R, RANKS, num_stages=1):
            r, at, known_ranks = load_rank(flat, known, first, here, k, K, N, R)
            dr = tl.dot(
                dz,
                tl.trans(load_weight(weight, channel, channels, first, k, R)),
                input_precision=GRADIENT,
            )
            add(dhere + at, dr, known_ranks, block)
            rank = first + tl.arange(0, RANKS)
            add(
                dweight + parameter[None, :] * R + rank[:, None],
                tl.dot(tl.trans(r.to(tl.float32)), dz, input_precision=GRADIENT),
                exists[None, :] & (rank < R)[:, None],
                turn,
            )
        wait_for_stores(WAITS)  # what was stored in scratch and ddbc is read by other threads of this program


def ss2d_scan_backward(
    dy: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), the first of x's dtype, the others float32; not for float64."""
    dy, x, dbc, dt_weight, A, D, dt_bias = (t.contiguous() for t in (dy, x, dbc, dt_weight, A, D, dt_bias))
    batch, height, width, channels = x.shape
    size, block, warps = TILE
    chosen = ss2d_kernels.constants(x, dbc, dt_weight, A, pattern) | {"P": size, "BLOCK": block}
    patches = triton.cdiv(height, chosen["P"]) * triton.cdiv(width, chosen["P"])
    starts, pushed, segments = x, x, 0
    if patches > 1:
        starts, pushed, segments = ss2d_kernels.segment_states(
            dy, x, dbc, dt_weight, A, dt_bias, pattern, warps, **chosen
        )
    blocks = triton.cdiv(channels, chosen["BLOCK"])
    programs = min(patches * batch, ENOUGH_PROGRAMS)
    per_part = triton.cdiv(blocks, min(blocks, triton.cdiv(ENOUGH_PROGRAMS, programs)))
    parts = triton.cdiv(blocks, per_part)

    def partial(count: int, *shape: int) -> Tensor:
        return x.new_empty((count, *shape), dtype=torch.float32)

    dx = torch.empty_like(x)
    ddbc = partial(parts, *dbc.shape)
    dweight, dA = partial(programs, *dt_weight.shape), partial(programs, *A.shape)
    dskip, dbias = partial(programs, channels), partial(programs, chosen["K"], channels)
    scratch = partial(programs, parts, size * size * block)
    launch(
        _gradients,
        (parts, programs),
        (
            *(dy, x, dbc, dt_weight, A, D, dt_bias, starts, pushed),
            *(dx, ddbc, dweight, dA, dskip, dbias, scratch),
            *(batch, height, width, channels - 1, segments, patches, per_part, block - 1),
        ),
        warps,
        PER_LINE=routes(pattern)[0].per_line,
        SINGLE=patches == 1,
        GRADIENT=product_precision(x.dtype),
        WAITS=stores_lag(),
        **chosen,
    )
    return dx, ddbc.sum(0), dweight.sum(0), dA.sum(0), dskip.sum(0).repeat(chosen["K"], 1), dbias.sum(0)
