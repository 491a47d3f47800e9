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

from vmamba.ops.backends.triton.tiles import LOG2E, WIDE, before

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(z, EXACT: tl.constexpr):
    """log2(1 + 2^z): one exponential and a minimax polynomial for log2(1 + u) / u on [0, 1].

    Relative error below 5e-7 where EXACT, else below 6e-5: a fiftieth of the rounding of bfloat16 storage.
    """
    u = tl.exp2(-tl.abs(z))
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
def row_chains(G: tl.constexpr):
    """Number, in the order of the tiles, of the chain of each row."""
    row = tl.arange(0, 16 * G)
    return row // 8 % G * 16 + row // (8 * G) * 8 + row % 8


@triton.jit
def tile_channels(first, C: tl.constexpr):
    """Channel of each column of the tiles."""
    column = tl.arange(0, C)
    return first + column // 2 % 4 * (C // 4) + column // 8 * 2 + column % 2


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
def row_places(token, first, channels, C: tl.constexpr):
    """Places of the rows of tokens in memory: C / 4 channels of each lane together."""
    channel = first + tl.arange(0, C)
    place = token[:, None] * channels + channel[None, :]
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
def load_pair(row, R: tl.constexpr, G: tl.constexpr):
    """b and c of every token, [G, 16, 4] of float32, four times the same: every lane of a row loads both."""
    entry = (tl.arange(0, 8) & 1)[None, :]
    entry = tl.max_contiguous(tl.multiple_of(entry, (1, 2)), (1, 2))
    pair = tl.load(row[:, None] + entry + R).to(tl.float32)
    b, c = tl.split(tl.reshape(pair, (2, G, 8, 4, 2)))
    b = tl.reshape(tl.permute(b, (1, 0, 2, 3)), (G, 16, 4))
    c = tl.reshape(tl.permute(c, (1, 0, 2, 3)), (G, 16, 4))
    return b, c


@triton.jit
def over_channels(t, G: tl.constexpr, C: tl.constexpr):
    """[G, 16, 4], four times the same, → [G, 16, C]."""
    t = tl.reshape(t, (G, 16, 1, 4, 1))
    return tl.reshape(tl.broadcast_to(t, (G, 16, C // 8, 4, 2)), (G, 16, C))


@triton.jit
def load_parameter(pointer, first, channels, G: tl.constexpr, C: tl.constexpr):
    """A parameter of every channel, [1, 1, C]."""
    channel = tile_channels(first, C)
    return tl.load(pointer + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, None, :]


@triton.jit
def _load_weight_eight(
    weight, kind, first, channels, k, part: tl.constexpr, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr
):
    """Eight ranks of the Δ projection of route k, times log2(e), [C / 8, G, 1, 8 channels, 8 ranks], for every warp.

    In the type of `kind`, and what this rounds off: nothing of a float32 weight is lost but the last bits.
    """
    column, rank = tl.arange(0, C * G), tl.arange(0, 8)[None, :]
    channel = first + column % 8 // 2 * (C // 4) + column // (8 * G) * 2 + column % 2
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
def load_weights(weight, kind, first, channels, k, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """The Δ projection of route k as operands of `project`: two for every sixteen ranks, for the last eight one."""
    operands = ()
    for part in tl.static_range(0, (R + 7) // 8, 2):
        high, low = _load_weight_eight(weight, kind, first, channels, k, part, R, G, C)
        if part * 8 + 8 < R:
            high2, low2 = _load_weight_eight(weight, kind, first, channels, k, part + 1, R, G, C)
            pair = (_operand(high, high2, G, C), _operand(low, low2, G, C))
        else:
            pair = (_operand(high, low, G, C),)
        operands += pair
    return operands


@triton.jit
def _product(a, b, z, PRECISION: tl.constexpr):
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
        z = _product(r, operands[part], z, PRECISION)
        if part * 8 + 8 < R:
            z = _product(r, operands[part + 1], z, PRECISION)
    return z


@triton.jit
def load_transposed(transposed, kind, first, channels, k, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """Operands [G, C, 8] of `project_back`: the transpose (K, R, D) of the Δ projection, and selections.

    The last two sum over the channels, into the columns of b and c. They are loaded, though nothing is read, so that
    the compiler has them where the tensor cores want them.
    """
    operands = ()
    line, column = tl.arange(0, C * G), tl.arange(0, 8)[None, :]
    rank = (line % 8)[:, None]
    channel = (first + line // (8 * G) * 2)[:, None] + (column // 2 * (C // 4) + column % 2)
    for part in tl.static_range((R + 7) // 8 + 2):
        place = (k * R + part * 8 + rank) * channels + channel
        place = tl.max_contiguous(tl.multiple_of(place, (1, 2)), (1, 2))
        if part < (R + 7) // 8:
            w = tl.load(transposed + place, mask=(rank < R - part * 8) & (channel < channels), other=0.0)
        else:
            one = tl.where(rank == (R + part - (R + 7) // 8) % 8, 1.0, 0.0).to(transposed.dtype.element_ty)
            w = tl.load(transposed + place, mask=channel < 0, other=tl.broadcast_to(one, (C * G, 8)))
        w = tl.permute(tl.reshape(_factor(w, kind), (C // 8, G, 8, 8)), (1, 0, 3, 2))
        operands += (tl.reshape(w, (G, C, 8)),)
    return operands


@triton.jit
def _factor(t, kind):
    """A factor of gradients: bfloat16 where `kind` points to it, else float32; float16 has too small a range."""
    return t.to(tl.bfloat16 if kind.dtype.element_ty == tl.bfloat16 else tl.float32)


@triton.jit
def no_gradients(R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """Zeros that `project_back` adds the gradients of the weights to, and of the bias."""
    zeros = ()
    for _part in tl.static_range((R + 7) // 8 + 1):
        zeros += (tl.zeros((G, C, 8), tl.float32),)
    return zeros


@triton.jit
def project_back(
    ranks,
    drow,
    valid,
    dz,
    db,
    dc,
    kind,
    operands,
    dw,
    times,
    R: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the tokens of a step, from those of z and the terms of those of b and c, all [G, 16, C].

    Those of r, b and c are added to what `drow` points to (stored, where there were none before: `times`), that of the
    weights and the bias to `dw`, which is returned. Products over chains take an exchange between the lanes of a warp.
    """
    dz, db, dc = _factor(dz, kind), _factor(db, kind), _factor(dc, kind)
    across, sums = tl.permute(dz, (0, 2, 1)), ()
    LAST: tl.constexpr = (R + 7) // 8
    for part in tl.static_range((R + 9) // 8):
        entry = tl.arange(0, 8)[None, :]
        place = tl.max_contiguous(tl.multiple_of(entry, (1, 2)), (1, 2))
        mask = valid[:, None]
        if part * 8 + 8 > R + 2:
            mask = mask & (entry < R + 2 - part * 8)
        later = mask & (tl.full((1, 1), 1, tl.int32) * times > 0)
        total = tl.load(drow[:, None] + place + part * 8, mask=later, other=0.0)
        total = tl.reshape(tl.permute(tl.reshape(total, (2, G, 8, 8)), (1, 0, 2, 3)), (G, 16, 8))
        if part < LAST:
            total = _product(dz, operands[part], total, PRECISION)
        if part == R // 8:
            total = _product(db, operands[LAST], total, PRECISION)
        if part == (R + 1) // 8:
            total = _product(dc, operands[LAST + 1], total, PRECISION)
        total = tl.reshape(tl.permute(tl.reshape(total, (G, 2, 8, 8)), (1, 0, 2, 3)), (16 * G, 8))
        tl.store(drow[:, None] + place + part * 8, total, mask=mask)
        if part < LAST:
            r = _factor(tl.reshape(ranks[part], (G, 16, 8)), kind)
            sums += (_product(across, r, dw[part], PRECISION),)
    ones = tl.full((G, 16, 8), 1.0, tl.float32).to(across.dtype)
    return sums + (_product(across, ones, dw[LAST], PRECISION),)  # noqa: RUF005


@triton.jit
def add(pointer, value, mask, times):
    """Store the first value, add the next ones: those before which there were some `times`."""
    later = mask.to(tl.int32) * times > 0
    tl.store(pointer, value + tl.load(pointer, mask=later, other=0.0), mask=mask)


@triton.jit
def add_parameter(pointer, value, first, channels, pitch, times, G: tl.constexpr, C: tl.constexpr):
    """`add` the sums over the chains of a warp, of [G, 16, C], to a gradient of every channel and warp.

    `pitch`: From one warp's to the next. No warp waits for another.
    """
    total = rows(tl.broadcast_to(tl.sum(value, 1)[:, None, :], (G, 16, C)), G, C)
    row = tl.arange(0, 16 * G)
    channel = first + tl.arange(0, C)[None, :]
    place = tl.multiple_of((row // 8 % G * pitch)[:, None] + channel, (1, C // 4))
    mask = ((row < 8 * G) & (row % 8 == 0))[:, None] & (channel < channels)
    add(pointer + tl.max_contiguous(place, (1, C // 4)), total, mask, times)


@triton.jit
def add_bias(pointer, dw, first, channels, pitch, times, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """`add` the gradient of the bias of every warp: any column of the last of `dw`, [G, C, 8]."""
    line, column = tl.arange(0, C * G), tl.arange(0, 8)[None, :]
    channel = first + line % 8 // 2 * (C // 4) + line // (8 * G) * 2 + line % 2
    place = (line // 8 % G * pitch + channel)[:, None] + column
    place = tl.max_contiguous(place, (1, 2))
    mask = (channel < channels)[:, None] & (column == 0)
    total = tl.reshape(tl.permute(tl.reshape(dw[(R + 7) // 8], (G, C // 8, 8, 8)), (1, 0, 2, 3)), (C * G, 8))
    add(pointer + place, total, mask, times)


@triton.jit
def add_weights(pointer, dw, first, channels, k, pitch, times, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """`add` the gradient of the Δ projection of route k, of every warp."""
    line, rank = tl.arange(0, C * G), tl.arange(0, 8)[None, :]
    channel = first + line % 8 // 2 * (C // 4) + line // (8 * G) * 2 + line % 2
    for part in tl.static_range((R + 7) // 8):
        place = (line // 8 % G * pitch + (k * channels + channel) * R)[:, None] + part * 8 + rank
        place = tl.max_contiguous(tl.multiple_of(place, (1, 2 - R % 2)), (1, 2))
        mask = (channel < channels)[:, None] & (rank < R - part * 8)
        total = tl.reshape(tl.permute(tl.reshape(dw[part], (G, C // 8, 8, 8)), (1, 0, 2, 3)), (C * G, 8))
        add(pointer + place, total, mask, times)


@triton.jit
def starts(a, d, CHAINS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, reverse: tl.constexpr):
    """State that each chain starts with (or ends with, in reverse), from the maps of all chains, [G, 16, C]."""
    IMAGES: tl.constexpr = 16 * G // CHAINS
    a, d = tl.reshape(a, (IMAGES, CHAINS, C)), tl.reshape(d, (IMAGES, CHAINS, C))
    _, start = before(tl.permute(a, (1, 0, 2)), tl.permute(d, (1, 0, 2)), reverse)
    return tl.reshape(tl.permute(start, (1, 0, 2)), (G, 16, C))


@triton.jit
def wait_for_stores(WAITS: tl.constexpr):
    """A barrier after which every thread of the program reads what any of them stored. See `launch.stores_lag`."""
    if WAITS:
        tl.inline_asm_elementwise("s_waitcnt vmcnt(0)", "=v", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
