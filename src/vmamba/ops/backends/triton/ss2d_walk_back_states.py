"""The walk back with several states: see `ss2d_walk_backward`, which launches it.

A program walks with four states at a time, along the route and back: what it keeps of every token, and the registers,
would be too much for all of them. So Δ is computed again for each group of them. The gradients of x and z are linear in
the sums over the states of what a state is pulled by, ``b g``, and of what its decay is, ``A a h g``: those are kept of
every token, and another visit computes from them what does not depend on the states.

The warps of a program hold different channels of the same chains, which are few: their maps are composed from one to
the next, through memory, along the route and against it. g is ln(2) times the adjoint, as in `ss2d_walk_backward`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.ops.backends.triton import walk, walk_gradients
from vmamba.ops.backends.triton.tiles import LOG2E, wait_for_stores


@triton.jit
def _walk_back_states(
    dy,
    x,
    dbc,
    weight,
    A,
    skip,
    bias,
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
    steps,
    inverse,
    blocks,
    groups,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    AT_ONCE: tl.constexpr,
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

    Bytes: as `_walk_back` has them with ``R + 2N`` for ``R + 2``; `scratch` stays in the caches, as far
    as the programs at work fit them together, several times what `_walk_back` keeps.
    """
    PITCH: tl.constexpr = K * (R + 2 * N)
    IMAGES: tl.constexpr = 16 // CHAINS
    BLOCK: tl.constexpr = C * G
    SIZE: tl.constexpr = 16 * G * C
    TURNS: tl.constexpr = N // AT_ONCE + 1
    channels = tl.multiple_of(last_channel + 1, C // 4)
    tokens = height * width
    parts = tl.cdiv(tl.cdiv(channels, BLOCK), blocks)
    part, program = tl.program_id(0) % parts, tl.program_id(0) // parts
    mine = tl.minimum(blocks, tl.cdiv(channels, BLOCK) - part * blocks)
    programs = tl.num_programs(0) // parts
    turns = tl.cdiv(groups - program, programs)
    number = walk.row_chains(G, True)
    own = tl.arange(0, 16 * G)[:, None] * C + tl.arange(0, C)[None, :]
    own = tl.max_contiguous(tl.multiple_of(own, (1, C // 4)), (1, C // 4))
    # In `scratch`: the ends of the chains, along the route and against it; what they start with; the two sums over the
    # states of every step; the decayed states, as x is stored; and the sum of dx over the routes. Of one address, since
    # those of several are too many.
    ALL: tl.constexpr = (2 + AT_ONCE) * SIZE
    FIRST: tl.constexpr = (3 * AT_ONCE + 2) * SIZE
    ends = scratch + tl.program_id(0).to(tl.int64) * (FIRST + steps * ALL + tokens * IMAGES * BLOCK)
    starts = ends + 2 * (AT_ONCE + 1) * SIZE + own
    linear = starts + AT_ONCE * SIZE
    kept = (ends + FIRST + 2 * steps * SIZE).to(x.dtype)
    sums = ends + FIRST + steps * ALL
    block, turn = 0, 0
    for visit in range(turns * mine * (K * TURNS)):
        n, k = visit % TURNS * AT_ONCE, visit // TURNS % K
        columns, backward = (COLUMNS >> k) & 1, (BACKWARD >> k) & 1
        first = (part * blocks + block) * BLOCK
        image = (program + turn * programs) * IMAGES
        here = image.to(tl.int64) * tokens
        exists = image + number // CHAINS < batch
        offset = tl.where(exists, number // CHAINS * tokens, 0)
        begin = number % CHAINS * steps
        begin += backward * (CHAINS * steps - 1 - 2 * begin)
        channel = walk.row_channels(first, G, C, True)
        inside = channel < channels
        column = walk.row_channels(0, G, C, True)
        entries = dbc + here * PITCH + k * (R + 2 * N)
        dentries = ddbc + (part.to(tl.int64) * batch * tokens + here) * PITCH + k * (R + 2 * N)
        weights = walk.load_weights(weight, dbc, first, channels, k, R, G, C, True)
        beta = walk.load_parameter(bias + k * channels, first, channels, G, C, True) * LOG2E
        beta = walk.settled(beta, G, C)
        known = (program * K + k).to(tl.int64) * channels
        if n < N:
            rates = walk.load_rates(A + k * channels * N + n, first, channels, AT_ONCE, N, G, C, True)
            states, pushed = walk.no_states(AT_ONCE, G, C), walk.no_states(AT_ONCE, G, C)
            total = tl.zeros((G, 16, C), tl.float32)
            dpassed = tl.zeros((G, 8, C), tl.float32)
            for t in range(steps):
                s = begin + t - 2 * backward * t
                valid = exists & (s < tokens)
                token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
                place, row = walk.row_places(token, channel, channels, C), entries + token * PITCH
                mask = valid[:, None] & inside
                u = walk.tiles(walk.widened(tl.load(x + here * channels + place, mask=mask, other=0.0)), G, C)
                v = walk.tiles(walk.widened(tl.load(dy + here * channels + place, mask=mask, other=0.0)), G, C)
                dpassed = walk_gradients.add_rows(dpassed, u, v, G, C)
                delta = walk.softplus(walk.project(walk.load_ranks(row, R, G), weights, beta, R, G, PRECISION), EXACT)
                total += delta
                weighted, after, behind = delta * (u * walk.LN2), (), ()
                for i in tl.static_range(AT_ONCE):
                    if i % 2 == 0:
                        bs, cs = walk.load_pair(row + n, R + i, G), walk.load_pair(row + n, R + N + i, G)
                    carried = tl.exp2(delta * rates[i]) * states[i]
                    tl.store(kept + (t * AT_ONCE + i) * SIZE + own, walk.rows(carried, G, C).to(x.dtype.element_ty))
                    after += (tl.fma(weighted, walk.over_channels(bs[i % 2], G, C), carried),)
                    if CHAINS > 1:
                        pull = v * walk.over_channels(cs[i % 2], G, C)
                        behind += (tl.fma(tl.exp2(total * rates[i]), pull, pushed[i]),)
                states = after
                if CHAINS > 1:
                    pushed = behind
            if k + n == 0:  # the same for all routes and states
                same = dskip + program.to(tl.int64) * channels
                walk_gradients.add_sum(same, dpassed, first, channels, turn, G, C)
            if CHAINS > 1:
                before = walk.starts_of_states(total, states, rates, ends, False, CHAINS, AT_ONCE, G, C, WAITS)
                for i in tl.static_range(AT_ONCE):  # not in registers
                    tl.store(starts + i * SIZE, walk.rows(before[i], G, C))
                memory = ends + (AT_ONCE + 1) * SIZE
                pushed = walk.starts_of_states(total, pushed, rates, memory, True, CHAINS, AT_ONCE, G, C, WAITS)
                pushed = walk_gradients.scaled(pushed, walk.LN2)
            drates = ()
            for _i in tl.static_range(AT_ONCE):
                drates += (tl.zeros((G, 8, C), tl.float32),)
            for i in range(steps):
                t = steps - 1 - i
                s = begin + t - 2 * backward * t
                valid = exists & (s < tokens)
                token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
                place, row = walk.row_places(token, channel, channels, C), entries + token * PITCH
                mask = valid[:, None] & inside
                u = walk.tiles(walk.widened(tl.load(x + here * channels + place, mask=mask, other=0.0)), G, C)
                v = walk.tiles(walk.widened(tl.load(dy + here * channels + place, mask=mask, other=0.0)), G, C)
                delta = walk.softplus(walk.project(walk.load_ranks(row, R, G), weights, beta, R, G, PRECISION), EXACT)
                weighted = u * delta
                pulled, through = tl.zeros((G, 16, C), tl.float32), tl.zeros((G, 16, C), tl.float32)
                pushed_before, drates_before, bc = (), (), ()
                for j in tl.static_range(AT_ONCE):
                    if j % 2 == 0:
                        bs, cs = walk.load_pair(row + n, R + j, G), walk.load_pair(row + n, R + N + j, G)
                    b, c = bs[j % 2], cs[j % 2]
                    carried = walk.tiles(walk.widened(tl.load(kept + (t * AT_ONCE + j) * SIZE + own)), G, C)
                    if CHAINS > 1:
                        start = walk.tiles(tl.load(starts + j * SIZE), G, C)
                        carried = tl.fma(tl.exp2(total * rates[j]), start, carried)
                    adjoint = tl.fma(v, walk.over_channels(c * walk.LN2, G, C), pushed[j])
                    pushed_before += (tl.exp2(delta * rates[j]) * adjoint,)
                    through_decay = adjoint * carried
                    drates_before += (walk_gradients.add_rows(drates[j], through_decay, delta, G, C),)
                    through = tl.fma(through_decay, rates[j], through)
                    pulled = tl.fma(adjoint, walk.over_channels(b, G, C), pulled)
                    db, dc = adjoint * weighted, v * tl.fma(weighted, walk.over_channels(b * walk.LN2, G, C), carried)
                    bc += (walk_gradients.stacked(db, dc, x, G, C),)
                pushed, drates = pushed_before, drates_before
                total -= delta
                walk_gradients.add_states(dentries + n + token * PITCH, valid, bc, x, block, AT_ONCE, N, R, G, GRADIENT)
                so_far = (own >= 0) & (n > 0)
                pulled = walk.rows(pulled, G, C) + tl.load(linear + 2 * t * SIZE, mask=so_far, other=0.0)
                through = walk.rows(through, G, C) + tl.load(linear + (2 * t + 1) * SIZE, mask=so_far, other=0.0)
                tl.store(linear + 2 * t * SIZE, pulled)
                tl.store(linear + (2 * t + 1) * SIZE, through)
            for i in tl.static_range(AT_ONCE):
                rate_place = dA + known * N + (n + i) * channels
                walk_gradients.add_sum(rate_place, drates[i], first, channels, turn, G, C)
        else:  # the sums over the states are complete
            passed = walk.load_parameter(skip + k * channels, first, channels, G, C, True)
            back = walk_gradients.load_transposed_split(weight, x, first, channels, k, R, G, C)
            dw = walk_gradients.no_gradients(R, G, C)
            for t in range(steps):
                s = begin + t - 2 * backward * t
                valid = exists & (s < tokens)
                token = offset + walk.image_order(tl.minimum(s, tokens - 1), columns, height, width, inverse)
                place, row = walk.row_places(token, channel, channels, C), entries + token * PITCH
                mask = valid[:, None] & inside
                u = walk.tiles(walk.widened(tl.load(x + here * channels + place, mask=mask, other=0.0)), G, C)
                v = walk.tiles(walk.widened(tl.load(dy + here * channels + place, mask=mask, other=0.0)), G, C)
                pulled = walk.tiles(tl.load(linear + 2 * t * SIZE), G, C)
                through = walk.tiles(tl.load(linear + (2 * t + 1) * SIZE), G, C)
                sum_place = walk.row_places(token, column, BLOCK, C)
                du = walk.tiles(tl.load(sums + sum_place, mask=mask & (k > 0), other=0.0), G, C)
                ranks = walk.load_ranks(row, R, G)
                z = walk.project(ranks, weights, beta, R, G, PRECISION)
                delta = walk.softplus(z, EXACT)
                du = walk.rows(tl.fma(v, passed, tl.fma(pulled, delta, du)), G, C)
                tl.store(sums + sum_place, du, mask=mask)
                tl.store(dx + here * channels + place, du.to(dx.dtype.element_ty), mask=mask & (k == K - 1))
                dz = tl.fma(pulled, u, through) * tl.exp2(z - delta)
                drow = dentries + token * PITCH
                dw = walk_gradients.project_back_split(ranks, drow, valid, dz, x, back, dw, block, R, G, C, GRADIENT)
            walk_gradients.add_bias(dbias + known, dw, first, channels, 0, turn, R, G, C, True)
            walk_gradients.add_weights(dweight + known * R, dw, first, channels, 0, 0, turn, R, G, C, True)
        wait_for_stores(WAITS)  # another visit adds to the sums in other threads
        block += (visit + 1) % (K * TURNS) == 0
        turn += block == mine
        block = tl.where(block == mine, 0, block)
