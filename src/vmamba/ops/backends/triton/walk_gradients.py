"""Parts of the walk back: gradients of the tokens of a step, and those of the parameters. See `walk`.

dz is ln(2) times the gradient of z here: log2(e) is in the weights that multiply it, and in the sums of it.

Gradients of r, b and c are sums over channels: of a warp, or of all warps where they `SPLIT` the channels, which then
exchange what they multiply once a step. Those of the parameters are sums over tokens, of each warp by itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.ops.backends.triton.tiles import LOG2E, add
from vmamba.ops.backends.triton.walk import column_channels, line_channels, product, row_channels, rows


@triton.jit
def load_transposed(
    weight, transposed, kind, first, channels, k, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr
):
    """Operands of `project_back`: the transpose of the Δ projection, and selections for the columns of b and c.

    Where the warps `SPLIT` the channels, [G C, 8 G] for every 8 G columns, and then [8 G, 8 G]. Else eight columns at a
    time, [G, C, 8], from the transpose (K, R, D); the last two are loaded, though nothing is read, so that the compiler
    has them where the tensor cores want them.
    """
    operands = ()
    if SPLIT:
        operands += load_transposed_split(weight, kind, first, channels, k, R, G, C)
        rank = tl.arange(0, 8 * G)[None, :]
        for part in tl.static_range(R // (8 * G), (R + 1) // (8 * G) + 1):
            one = tl.where(rank == R - part * 8 * G + tl.arange(0, 8 * G)[:, None] % 2, 1.0, 0.0)
            operands += (_factor(one, kind),)
    else:
        line, column = tl.arange(0, C * G), tl.arange(0, 8)[None, :]
        rank = (line % 8)[:, None]
        channel = (first + line // (8 * G) * 2)[:, None] + (column // 2 * (C // 4) + column % 2)
        for part in tl.static_range((R + 7) // 8 + 2):
            place = (k * R + part * 8 + rank) * channels + channel
            place = tl.max_contiguous(tl.multiple_of(place, (1, 2)), (1, 2))
            if part < (R + 7) // 8:
                w = tl.load(transposed + place, mask=(rank < R - part * 8) & (channel < channels), other=0.0)
                w = w.to(tl.float32) * LOG2E
            else:
                one = tl.where(rank == (R + part - (R + 7) // 8) % 8, 1.0, 0.0).to(transposed.dtype.element_ty)
                w = tl.load(transposed + place, mask=channel < 0, other=tl.broadcast_to(one, (C * G, 8)))
            w = tl.permute(tl.reshape(_factor(w, kind), (C // 8, G, 8, 8)), (1, 0, 3, 2))
            operands += (tl.reshape(w, (G, C, 8)),)
    return operands


@triton.jit
def load_transposed_split(weight, kind, first, channels, k, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """The transpose of the Δ projection where the warps `SPLIT` the channels, [G C, 8 G] for every 8 G columns."""
    line, rank, operands = tl.arange(0, C * G)[:, None], tl.arange(0, 8 * G)[None, :], ()
    channel = first + line // C * C + column_channels(line % C, C)
    for part in tl.static_range((R + 8 * G - 1) // (8 * G)):
        mask = (channel < channels) & (rank < R - part * 8 * G)
        w = tl.load(weight + (k * channels + channel) * R + part * 8 * G + rank, mask=mask, other=0.0)
        operands += (_factor(w.to(tl.float32) * LOG2E, kind),)
    return operands


@triton.jit
def add_rows(total, left, right, G: tl.constexpr, C: tl.constexpr):
    """total + left right of the two rows of a lane, [G, 8, C]: half the registers."""
    left, right = tl.reshape(left, (G, 2, 8, C)), tl.reshape(right, (G, 2, 8, C))
    a0, a1 = tl.split(tl.permute(left, (0, 2, 3, 1)))
    b0, b1 = tl.split(tl.permute(right, (0, 2, 3, 1)))
    return tl.fma(a0, b0, tl.fma(a1, b1, total))


@triton.jit
def add_sum(pointer, value, first, channels, times, G: tl.constexpr, C: tl.constexpr):
    """`add_parameter` of what `add_rows` summed, where the warps `SPLIT` the channels."""
    both = tl.broadcast_to(tl.reshape(value, (G, 1, 8, C)), (G, 2, 8, C))
    total = tl.reshape(both, (G, 16, C))
    add_parameter(pointer, total * 0.5, first, channels, 0, times, G, C, True)


@triton.jit
def stacked(db, dc, kind, G: tl.constexpr, C: tl.constexpr):
    """Sums over the channels of a lane of two terms, as a factor: [G, 16, 4, 2]."""
    return _factor(tl.join(of_lanes(db, G, C), of_lanes(dc, G, C)), kind)


@triton.jit
def scaled(values, factor: tl.constexpr):
    """Each of some tensors times a number."""
    products = ()
    for i in tl.static_range(len(values)):
        products += (values[i] * factor,)
    return products


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
def _token_gradients(
    drow,
    valid,
    dz,
    db,
    dc,
    operands,
    times,
    R: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`add` the gradients of r, b and c of the tokens of a step, eight at a time, over the channels of a warp."""
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
            total = product(dz, operands[part], total, PRECISION)
        if part == R // 8:
            total = product(db, operands[LAST], total, PRECISION)
        if part == (R + 1) // 8:
            total = product(dc, operands[LAST + 1], total, PRECISION)
        total = tl.reshape(tl.permute(tl.reshape(total, (G, 2, 8, 8)), (1, 0, 2, 3)), (16 * G, 8))
        tl.store(drow[:, None] + place + part * 8, total, mask=mask)


@triton.jit
def of_lanes(t, G: tl.constexpr, C: tl.constexpr):
    """Sums over the channels of a lane, [G, 16, C] → [G, 16, 4]."""
    return tl.sum(tl.sum(tl.reshape(t, (G, 16, C // 8, 4, 2)), 4), 2)


@triton.jit
def _token_gradients_split(
    drow,
    valid,
    dz,
    db,
    dc,
    kind,
    operands,
    times,
    R: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`add` the gradients of r, b and c of the tokens of a step over the channels of all warps.

    Each warp adds up eight, or some eights in turn where there are more of them than warps.
    """
    dz = tl.reshape(tl.permute(dz, (1, 0, 2)), (16, G * C))
    both = _factor(tl.join(of_lanes(db, G, C), of_lanes(dc, G, C)), kind)
    both = tl.reshape(tl.permute(both, (1, 0, 2, 3)), (16, 8 * G))
    PARTS: tl.constexpr = (R + 8 * G - 1) // (8 * G)
    for part in tl.static_range((R + 8 * G + 1) // (8 * G)):
        total = tl.zeros((16, 8 * G), tl.float32)
        if part < PARTS:
            total = product(dz, operands[part], total, PRECISION)
        if part >= R // (8 * G):
            total = product(both, operands[PARTS + part - R // (8 * G)], total, PRECISION)
        total = tl.reshape(tl.permute(tl.reshape(total, (2, 8, G, 8)), (0, 2, 1, 3)), (16 * G, 8))
        entry = (tl.arange(0, 16 * G) // 8 % G * 8)[:, None] + tl.arange(0, 8)[None, :]
        place = tl.max_contiguous(tl.multiple_of(entry, (1, 2)), (1, 2))
        mask = valid[:, None] & (entry < R + 2 - part * 8 * G)
        add(drow[:, None] + place + part * 8 * G, total, mask, times)


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
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the tokens of a step, from dz and the terms of those of b and c, all [G, 16, C].

    Those of r, b and c are added to what `drow` points to (stored, where there were none before: `times`), that of the
    weights and the bias to `dw`, which is returned. Products over chains take an exchange between the lanes of a warp.
    """
    dz = _factor(dz, kind)
    if SPLIT:
        _token_gradients_split(drow, valid, dz, db, dc, kind, operands, times, R, G, C, PRECISION)
    else:
        db, dc = _factor(db, kind), _factor(dc, kind)
        _token_gradients(drow, valid, dz, db, dc, operands, times, R, G, C, PRECISION)
    return _weight_gradients(ranks, dz, kind, dw, R, G, C, PRECISION)


@triton.jit
def _weight_gradients(ranks, dz, kind, dw, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr, PRECISION: tl.constexpr):
    """Sums of the gradients of the weights and the bias, with those of the tokens of a step, of dz as a factor."""
    sums = ()
    across = tl.permute(dz, (0, 2, 1))
    LAST: tl.constexpr = (R + 7) // 8
    for part in tl.static_range(LAST):
        r = _factor(tl.reshape(ranks[part], (G, 16, 8)), kind)
        sums += (product(across, r, dw[part], PRECISION),)
    ones = tl.full((G, 16, 8), 1.0, tl.float32).to(across.dtype)
    return sums + (product(across, ones, dw[LAST], PRECISION),)  # noqa: RUF005


@triton.jit
def project_back_split(
    ranks,
    drow,
    valid,
    dz,
    kind,
    operands,
    dw,
    times,
    R: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`project_back` of dz alone, where the warps `SPLIT` the channels."""
    dz = _factor(dz, kind)
    line = tl.reshape(tl.permute(dz, (1, 0, 2)), (16, G * C))
    for part in tl.static_range((R + 8 * G - 1) // (8 * G)):
        total = product(line, operands[part], tl.zeros((16, 8 * G), tl.float32), PRECISION)
        total = tl.reshape(tl.permute(tl.reshape(total, (2, 8, G, 8)), (0, 2, 1, 3)), (16 * G, 8))
        entry = (tl.arange(0, 16 * G) // 8 % G * 8)[:, None] + tl.arange(0, 8)[None, :]
        place = tl.max_contiguous(tl.multiple_of(entry, (1, 2)), (1, 2))
        mask = valid[:, None] & (entry < R - part * 8 * G)
        add(drow[:, None] + place + part * 8 * G, total, mask, times)
    return _weight_gradients(ranks, dz, kind, dw, R, G, C, PRECISION)


@triton.jit
def add_states(
    drow,
    valid,
    bc,
    kind,
    times,
    COUNT: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`add` the gradients of b and c of COUNT of N states, from `of_lanes` of their terms in turn, over all channels.

    The first warp adds up all eight of them, or fewer.
    """
    stack = bc
    for level in tl.static_range(2):
        if COUNT >> level > 1:
            pairs = ()
            for i in tl.static_range(COUNT >> (level + 1)):
                pairs += (tl.join(stack[2 * i], stack[2 * i + 1]),)
            stack = pairs
    both = tl.reshape(stack[0], (G, 16, 8 * COUNT))
    both = tl.reshape(tl.permute(both, (1, 0, 2)), (16, 8 * COUNT * G))
    line, column = tl.arange(0, 8 * COUNT * G)[:, None], tl.arange(0, 8 * G)[None, :]
    # Entries of a lane: c or b, then which of every two states, then which two.
    inner = line % (2 * COUNT)
    if COUNT == 4:
        which, state = inner // 4, inner // 2 % 2 + inner % 2 * 2
    else:
        which, state = inner // 2, inner % 2
    one = tl.where(column == which * COUNT + state, 1.0, 0.0)
    total = product(both, _factor(one, kind), tl.zeros((16, 8 * G), tl.float32), PRECISION)
    total = tl.reshape(tl.permute(tl.reshape(total, (2, 8, G, 8)), (0, 2, 1, 3)), (16 * G, 8))
    warp, entry = (tl.arange(0, 16 * G) // 8 % G)[:, None], tl.arange(0, 8)[None, :]
    place = R + entry // COUNT * N + entry % COUNT
    place = tl.max_contiguous(place, (1, 2))
    add(drow[:, None] + place, total, valid[:, None] & (warp == 0) & (entry < 2 * COUNT), times)


@triton.jit
def add_parameter(pointer, value, first, channels, pitch, times, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr):
    """`add` the sums over the chains of a warp, of [G, 16, C], to a gradient of every channel and warp.

    `pitch`: From one warp's to the next, unless they `SPLIT` the channels. No warp waits for another.
    """
    total = rows(tl.broadcast_to(tl.sum(value, 1)[:, None, :], (G, 16, C)), G, C)
    row = tl.arange(0, 16 * G)
    channel = row_channels(first, G, C, SPLIT)
    place = channel if SPLIT else (row // 8 % G * pitch)[:, None] + channel
    place = tl.multiple_of(place, (1, C // 4))
    mask = ((row < 8 * G) & (row % 8 == 0))[:, None] & (channel < channels)
    add(pointer + tl.max_contiguous(place, (1, C // 4)), total, mask, times)


@triton.jit
def _warp_of_line(pitch, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr):
    """Start of the sums of the warp of each of `_line_channels`."""
    return tl.zeros((C * G,), tl.int32) if SPLIT else tl.arange(0, C * G) // 8 % G * pitch


@triton.jit
def add_bias(
    pointer, dw, first, channels, pitch, times, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr, SPLIT: tl.constexpr
):
    """`add` the gradient of the bias of every warp: the last of `dw`, [G, C, 8], eight times the same."""
    channel, column = line_channels(first, G, C, SPLIT), tl.arange(0, 8)[None, :]
    place = (_warp_of_line(pitch, G, C, SPLIT) + channel)[:, None] + column
    place = tl.max_contiguous(tl.multiple_of(place, (1, 2)), (1, 2))
    mask = (channel < channels)[:, None] & (column < 1)
    total = tl.reshape(tl.permute(tl.reshape(dw[(R + 7) // 8], (G, C // 8, 8, 8)), (1, 0, 2, 3)), (C * G, 8))
    add(pointer + place, total * LOG2E, mask, times)


@triton.jit
def add_weights(
    pointer,
    dw,
    first,
    channels,
    k,
    pitch,
    times,
    R: tl.constexpr,
    G: tl.constexpr,
    C: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """`add` the gradient of the Δ projection of route k, of every warp."""
    channel, rank = line_channels(first, G, C, SPLIT), tl.arange(0, 8)[None, :]
    for part in tl.static_range((R + 7) // 8):
        place = (_warp_of_line(pitch, G, C, SPLIT) + (k * channels + channel) * R)[:, None] + part * 8 + rank
        place = tl.max_contiguous(tl.multiple_of(place, (1, 2 - R % 2)), (1, 2))
        mask = (channel < channels)[:, None] & (rank < R - part * 8)
        total = tl.reshape(tl.permute(tl.reshape(dw[part], (G, C // 8, 8, 8)), (1, 0, 2, 3)), (C * G, 8))
        add(pointer + place, total * LOG2E, mask, times)
