"""Parts of the walking kernels: chains of tokens, and the two forms of a step of all of them.

A route is cut into *chains* of equal length, whatever the lines of the image: 3136 tokens are 128 chains of 25, 2 % of
them padding. A program holds 16 · G chains, of one image or of several, for C channels, and all of them take a step at
a time: one small product on the tensor cores for Δ, and ``h = a h + d`` where it leaves its result. Nothing is
exchanged between threads until the chains end.

A step has two forms. *Rows* [16 G, C] are what is in memory: a lane holds C / 4 channels of a token, which lie together
(16 bytes), of two chains. *Tiles* [G, 16, C] are what the tensor cores give and take: warp g holds 16 chains, a lane
the columns 2q and 2q + 1 of every eight, of two chains. With chains and channels numbered so that a lane holds the same
in both, `tiles` and `rows` only rename registers: on NVIDIA's GPUs, and as long as `max_contiguous` makes Triton load
what a lane needs. Otherwise the compiler exchanges the values between threads, and the result is the same.

Exponentials are of base 2, as the hardware's: log2(e) is in the weights of Δ, and ln(2) in b.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.ops.backends.triton.tiles import LOG2E, WIDE, around, before, wait_for_stores

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(z, EXACT: tl.constexpr):
    """log2(1 + 2^z): one exponential and a minimax polynomial for log2(1 + u) / u on [0, 1].

    Relative error below 5e-7 where EXACT, else below 6e-5: a fiftieth of the rounding of bfloat16 storage.
    """
    u = tl.exp2(tl.abs(z) * -1.0)  # no instruction of its own; a minus sign is a subtraction in Triton 3.6
    if EXACT:
        p = tl.fma(u, -0.01231947399142942, 0.06360789368877087)
        p = tl.fma(u, p, -0.1553518741167923)
        p = tl.fma(u, p, 0.2560097187464656)
        p = tl.fma(u, p, -0.35339482747190054)
        p = tl.fma(u, p, 0.4800636965034628)
        p = tl.fma(u, p, -0.7213100882172612)
        p = tl.fma(u, p, 1.4426947605256302)
    else:
        p = tl.fma(u, 0.059651548267843274, -0.22711945121979815)
        p = tl.fma(u, p, 0.44189883195082924)
        p = tl.fma(u, p, -0.7169874151506116)
        p = tl.fma(u, p, 1.442613208229159)
    return tl.fma(u, p, tl.maximum(z, 0.0))


@triton.jit
def widened(t):
    """float32 of t: of bfloat16 the bits, moved, for which the compiler takes one instruction instead of two."""
    if t.dtype == tl.bfloat16:
        bits = t.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    return t.to(tl.float32)


@triton.jit
def tiles(t, G: tl.constexpr, C: tl.constexpr):
    """[16 G, C] → [G, 16, C]."""
    t = tl.reshape(t, (2, G, 8, 4, C // 8, 2))
    return tl.reshape(tl.permute(t, (1, 0, 2, 4, 3, 5)), (G, 16, C))


@triton.jit
def rows(t, G: tl.constexpr, C: tl.constexpr):
    """[G, 16, C] → [16 G, C]."""
    t = tl.reshape(t, (G, 2, 8, C // 8, 4, 2))
    return tl.reshape(tl.permute(t, (1, 0, 2, 4, 3, 5)), (16 * G, C))


@triton.jit
def row_chains(G: tl.constexpr, SPLIT: tl.constexpr):
    """Number of the chain of each row: in the order of the tiles, or the same 16 in every warp where they `SPLIT`."""
    row = tl.arange(0, 16 * G)
    chain = row // (8 * G) * 8 + row % 8
    return chain if SPLIT else row // 8 % G * 16 + chain


@triton.jit
def row_channels(first, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr):
    """Channels of each row, [16 G, C]; [1, C] where they are the same for all."""
    channel = first + tl.arange(0, C)[None, :]
    return channel + (tl.arange(0, 16 * G) // 8 % G * C)[:, None] if SPLIT else channel


@triton.jit
def column_channels(column, C: tl.constexpr):
    """Channel, counted from the first, of a column of the tiles."""
    return column // 2 % 4 * (C // 4) + column // 8 * 2 + column % 2


@triton.jit
def tile_channels(first, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr):
    """Channel of each column of the tiles, [G, 1, C] where the warps `SPLIT` the channels, else [1, 1, C]."""
    channel = first + column_channels(tl.arange(0, C), C)[None, :]
    channel = channel + (tl.arange(0, G) * C)[:, None] if SPLIT else channel
    return channel[:, None, :]


@triton.jit
def image_order(s, columns, height, width, inverse):
    """Image-order index of the s-th token of a route in forward direction.

    Args:
        s: At most 2³¹ / height, which the callers see to.
        columns: 0 or 1, may be known only when the kernel runs.
        height: Of the image.
        width: Of the image.
        inverse: ``2³¹ // height + 1``, by which s is divided in one multiplication.
    """
    q = s // height if WIDE else tl.umulhi((2 * s).to(tl.uint32), inverse.to(tl.uint32)).to(tl.int32)
    return s * (1 + columns * (width - 1)) + q * (columns * (1 - height * width))


@triton.jit
def row_places(token, channel, channels, C: tl.constexpr):
    """Places of the rows of tokens in memory, of `row_channels`: C / 4 channels of each lane together."""
    place = token[:, None] * channels + channel
    return tl.max_contiguous(tl.multiple_of(place, (1, C // 4)), (1, C // 4))


@triton.jit
def _load_eight(row, first: tl.constexpr, R: tl.constexpr, G: tl.constexpr):
    """Eight entries of r from `first` on, [G, 16, 1, 8], zero beyond the rank. A lane loads two that lie together.

    `row` points to the entries of the tokens, [16 G].
    """
    rank = tl.arange(0, 8)[None, :]
    place = tl.max_contiguous(tl.multiple_of(rank, (1, 2)), (1, 2))
    if first + 8 > R:
        r = tl.load(row[:, None] + place + first, mask=rank < R - first, other=0.0)
    else:
        r = tl.load(row[:, None] + place + first)
    return tl.reshape(tl.permute(tl.reshape(r, (2, G, 8, 8)), (1, 0, 2, 3)), (G, 16, 1, 8))


@triton.jit
def load_pair(row, first: tl.constexpr, G: tl.constexpr):
    """Two entries of every token from the first on, [G, 16, 4] of float32, four times the same.

    Every lane of a row loads both. With one state they are b and c.
    """
    entry = (tl.arange(0, 8) & 1)[None, :]
    entry = tl.max_contiguous(tl.multiple_of(entry, (1, 2)), (1, 2))
    pair = widened(tl.load(row[:, None] + entry + first))
    left, right = tl.split(tl.reshape(pair, (2, G, 8, 4, 2)))
    left = tl.reshape(tl.permute(left, (1, 0, 2, 3)), (G, 16, 4))
    right = tl.reshape(tl.permute(right, (1, 0, 2, 3)), (G, 16, 4))
    return left, right


@triton.jit
def over_channels(t, G: tl.constexpr, C: tl.constexpr):
    """[G, 16, 4], four times the same, → [G, 16, C]."""
    t = tl.reshape(t, (G, 16, 1, 4, 1))
    return tl.reshape(tl.broadcast_to(t, (G, 16, C // 8, 4, 2)), (G, 16, C))


@triton.jit
def load_parameter(pointer, first, channels, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr):
    """A parameter of every channel, as `tile_channels` has them."""
    channel = tile_channels(first, G, C, SPLIT)
    return tl.load(pointer + channel, mask=channel < channels, other=0.0).to(tl.float32)


@triton.jit
def load_rates(
    pointer,
    first,
    channels,
    COUNT: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """A of so many of N states, each as `load_parameter` has it."""
    channel, rates = tile_channels(first, G, C, SPLIT), ()
    for n in tl.static_range(COUNT):
        rates += (tl.load(pointer + channel * N + n, mask=channel < channels, other=0.0).to(tl.float32),)
    return rates


@triton.jit
def no_states(N: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """Zeros, [G, 16, C], for every state."""
    states = ()
    for _n in tl.static_range(N):
        states += (tl.zeros((G, 16, C), tl.float32),)
    return states


@triton.jit
def step(states, u, delta, rates, row, out, N: tl.constexpr, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """The states after a token, and their outputs added to `out`, which cost nothing where they are not used."""
    if N == 1:
        b, c = load_pair(row, R, G)
        h = tl.fma(tl.exp2(delta * rates[0]), states[0], delta * (u * over_channels(b * LN2, G, C)))
        return (h,), tl.fma(over_channels(c, G, C), h, out)
    else:
        weighted, after = delta * (u * LN2), ()
        for n in tl.static_range(0, N, 2):
            b, b1 = load_pair(row, R + n, G)
            c, c1 = load_pair(row, R + N + n, G)
            h = tl.fma(tl.exp2(delta * rates[n]), states[n], weighted * over_channels(b, G, C))
            h1 = tl.fma(tl.exp2(delta * rates[n + 1]), states[n + 1], weighted * over_channels(b1, G, C))
            out = tl.fma(over_channels(c1, G, C), h1, tl.fma(over_channels(c, G, C), h, out))
            after += (h, h1)
        return after, out


@triton.jit
def line_channels(first, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr):
    """Channels of every warp in the order in which operands and results of products hold them, [C G]."""
    line = tl.arange(0, C * G)
    channel = first + line % 8 // 2 * (C // 4) + line // (8 * G) * 2 + line % 2
    return channel + line // 8 % G * C if SPLIT else channel


@triton.jit
def _load_weight_eight(
    weight,
    kind,
    first,
    channels,
    k,
    part: tl.constexpr,
    R: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Eight ranks of the Δ projection of route k, times log2(e), [C / 8, G, 1, 8 channels, 8 ranks], for every warp.

    In the type of `kind`, and what this rounds off: nothing of a float32 weight is lost but the last bits.
    """
    channel, rank = line_channels(first, G, C, SPLIT), tl.arange(0, 8)[None, :]
    place = ((k * channels + channel) * R)[:, None] + part * 8 + rank
    place = tl.max_contiguous(tl.multiple_of(place, (1, 2 - R % 2)), (1, 2))
    mask = (channel < channels)[:, None] & (rank < R - part * 8)
    w = tl.load(weight + place, mask=mask, other=0.0).to(tl.float32) * LOG2E
    high = w.to(kind.dtype.element_ty)
    low = (w - high.to(tl.float32)).to(kind.dtype.element_ty)
    return tl.reshape(high, (C // 8, G, 1, 8, 8)), tl.reshape(low, (C // 8, G, 1, 8, 8))


@triton.jit
def _operand(left, right, G: tl.constexpr, C: tl.constexpr):
    """Two times eight ranks as an operand of a product, [G, 16, C]."""
    both = tl.where(tl.arange(0, 2)[None, None, :, None, None] == 0, left, right)
    return tl.reshape(tl.permute(both, (1, 2, 4, 0, 3)), (G, 16, C))


@triton.jit
def load_weights(
    weight, kind, first, channels, k, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr
):
    """The Δ projection of route k as operands of `project`: two for every sixteen ranks, for the last eight one."""
    operands = ()
    for part in tl.static_range(0, (R + 7) // 8, 2):
        high, low = _load_weight_eight(weight, kind, first, channels, k, part, R, G, C, SPLIT)
        if part * 8 + 8 < R:
            high2, low2 = _load_weight_eight(weight, kind, first, channels, k, part + 1, R, G, C, SPLIT)
            pair = (_operand(high, high2, G, C), _operand(low, low2, G, C))
        else:
            pair = (_operand(high, low, G, C),)
        operands += pair
    return operands


@triton.jit
def product(a, b, z, PRECISION: tl.constexpr):
    """z + a b in float32; the interpreter has no products of bfloat16."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, z, input_precision=PRECISION)


@triton.jit
def load_ranks(row, R: tl.constexpr, G: tl.constexpr):
    """r of the tokens of a step, eight entries at a time."""
    ranks = ()
    for part in tl.static_range((R + 7) // 8):
        ranks += (_load_eight(row, part * 8, R, G),)
    return ranks


@triton.jit
def project(ranks, operands, z, R: tl.constexpr, G: tl.constexpr, PRECISION: tl.constexpr):
    """z + W r, [G, 16, C]: sixteen ranks, or eight of them twice, at a time."""
    for part in tl.static_range(0, (R + 7) // 8, 2):
        if part * 8 + 8 < R:
            r = tl.where(tl.arange(0, 2)[None, None, :, None] == 0, ranks[part], ranks[part + 1])
        else:
            r = tl.broadcast_to(ranks[part], (G, 16, 2, 8))
        r = tl.reshape(r, (G, 16, 16))
        z = product(r, operands[part], z, PRECISION)
        if part * 8 + 8 < R:
            z = product(r, operands[part + 1], z, PRECISION)
    return z


@triton.jit
def _final(t, P: tl.constexpr, reverse: tl.constexpr):
    """The last row (the first, in reverse)."""
    return tl.sum(tl.where((tl.arange(0, P) == (0 if reverse else P - 1))[:, None], t, 0.0), 0)


@triton.jit
def _starts_of_runs(
    maps, RUN: tl.constexpr, RUNS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, reverse: tl.constexpr
):
    """State that each chain starts with, from the composed maps of every run."""
    a, d, m, start = maps
    N: tl.constexpr = 16 * G // RUN
    IMAGES: tl.constexpr = N // RUNS
    if RUNS > 1:
        a = tl.permute(tl.reshape(_final(a, RUN, reverse), (IMAGES, RUNS, C)), (1, 0, 2))
        d = tl.permute(tl.reshape(_final(d, RUN, reverse), (IMAGES, RUNS, C)), (1, 0, 2))
        _, first = before(tl.reshape(a, (RUNS, IMAGES * C)), tl.reshape(d, (RUNS, IMAGES * C)), reverse)
        first = tl.permute(tl.reshape(first, (RUNS, IMAGES, C)), (1, 0, 2))
        start = tl.fma(m, tl.reshape(first, (N * C,))[None, :], start)
    return tl.reshape(tl.permute(tl.reshape(start, (RUN, N, C)), (1, 0, 2)), (G, 16, C))


@triton.jit
def starts(a, d, CHAINS: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """State that each chain starts with, from the maps of all chains, [G, 16, C]."""
    IMAGES: tl.constexpr = 16 * G // CHAINS
    a, d = tl.reshape(a, (IMAGES, CHAINS, C)), tl.reshape(d, (IMAGES, CHAINS, C))
    _, start = before(tl.permute(a, (1, 0, 2)), tl.permute(d, (1, 0, 2)), False)
    return tl.reshape(tl.permute(start, (1, 0, 2)), (G, 16, C))


@triton.jit
def starts_of_states(
    total,
    states,
    rates,
    ends,
    AGAINST: tl.constexpr,
    CHAINS: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    WAITS: tl.constexpr,
):
    """State that each chain of warps that `SPLIT` starts with, for every state, by way of `ends` in memory.

    Or, AGAINST the route, what each is pushed by those behind it.

    Chain after chain: they are few and long, where the maps of several states at once would fill the registers.
    """
    SIZE: tl.constexpr = 16 * G * C
    row, column = tl.arange(0, 16 * G)[:, None], tl.arange(0, C)[None, :]
    warp, chain = row // 8 % G, row // (8 * G) * 8 + row % 8
    place = tl.multiple_of((warp * 16 + chain) * C + column, (1, C // 4))
    place = tl.max_contiguous(place, (1, C // 4))
    tl.store(ends + place, rows(total, G, C))
    for n in tl.static_range(N):
        tl.store(ends + (n + 1) * SIZE + place, rows(states[n], G, C))
    wait_for_stores(WAITS)
    starts = no_states(N, G, C)
    place = tl.multiple_of((warp * 16 + chain // CHAINS * CHAINS) * C + column, (1, C // 4))
    place = tl.max_contiguous(place, (1, C // 4))
    for turn in range(CHAINS - 1):
        other = CHAINS - 1 - turn if AGAINST else turn
        at = tiles(tl.broadcast_to(chain % CHAINS, (16 * G, C)), G, C)
        later = at < other if AGAINST else at > other
        total, after = tiles(tl.load(ends + other * C + place), G, C), ()
        for n in tl.static_range(N):
            end = tiles(tl.load(ends + (n + 1) * SIZE + other * C + place), G, C)
            after += (tl.where(later, tl.fma(tl.exp2(total * rates[n]), starts[n], end), starts[n]),)
        starts = after
    return starts


@triton.jit
def starts_and_ends(a, d, p, CHAINS: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """`starts` from the maps (a, d), and the same against the route from (a, p).

    First over runs of as many chains as a lane can have of one channel, so that each warp keeps its own. What is
    exchanged within warps goes together, since the program waits before every exchange. So both maps are composed in
    both directions, and the compiler leaves out what is not taken.
    """
    RUN: tl.constexpr = C // 2 if CHAINS > C // 2 else CHAINS
    N: tl.constexpr = 16 * G // RUN
    a = _runs_of_two(tl.join(a, a), RUN, N, C)
    d = _runs_of_two(tl.join(d, p), RUN, N, C)
    along, against = around(a, d, False), around(a, d, True)
    a0, d0, m0, x0 = _of_two(along[0]), _of_two(along[1]), _of_two(along[2]), _of_two(along[3])
    a1, d1, m1, x1 = _of_two(against[0]), _of_two(against[1]), _of_two(against[2]), _of_two(against[3])
    first = _starts_of_runs((a0[0], d0[0], m0[0], x0[0]), RUN, CHAINS // RUN, G, C, False)
    return first, _starts_of_runs((a1[1], d1[1], m1[1], x1[1]), RUN, CHAINS // RUN, G, C, True)


@triton.jit
def _runs_of_two(t, RUN: tl.constexpr, N: tl.constexpr, C: tl.constexpr):
    """[G, 16, C, 2] → [RUN, 2 N C]."""
    return tl.reshape(tl.permute(tl.reshape(t, (N, RUN, C, 2)), (1, 3, 0, 2)), (RUN, 2 * N * C))


@triton.jit
def _of_two(t):
    """[RUN, 2 M] → two times [RUN, M]."""
    return tl.split(tl.permute(tl.reshape(t, (t.shape[0], 2, t.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def settled(t, G: tl.constexpr, C: tl.constexpr):
    """t of every channel for every row, [G, 16, C], as the tensor cores leave sums: t + 0 · 0.

    So that it is in registers once. Else the compiler reads it again for every layout, and computes what follows from
    it twice; and what all rows have in common it copies at each step that adds to it.
    """
    zero = tl.zeros((G, 16, 16), tl.bfloat16)
    return product(zero, tl.zeros((G, 16, C), tl.bfloat16), tl.broadcast_to(t, (G, 16, C)), "ieee")
