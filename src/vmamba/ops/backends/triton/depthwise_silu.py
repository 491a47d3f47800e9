"""Depthwise 3×3 convolution and SiLU of tokens in Triton: one pass over memory in channels-last layout.

A program holds TOKENS columns, counted on through the whole batch, of BLOCK channels, and slides down a strip of rows.
Each row is read once, with its left and right neighbours from the caches, and adds to the three rows of the result that
it touches, which wait in registers. A lane holds 8 channels, 16 bytes in half precision; 4 where it also adds up the
gradients of the weights. Hardly anything is padded: columns go on in the next image, 32 divides the numbers of channels
of all released models, and rows come in pairs.

The backward pass computes the convolution again instead of keeping it: `_differentiated` writes dz = dy · silu'(z) and
adds up the gradients of weight and bias in registers, through all strips that a warp walks; `_convolved` convolves
dz with the mirrored weights. The warps' sums are added up afterwards in a fixed order: no atomics.

Bytes per token and channel with s-byte storage: forward 2s, which is the minimum. Backward: the minimum is 3s (x and dy
in, dx out); `_differentiated` moves 3s (dz out, rounded as PyTorch's own SiLU rounds it) and `_convolved` 2s. Rows at
the ends of strips are read twice, mostly from the caches. The warps' sums take 2.0 MB at most.

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton.launch import launch
from vmamba.ops.backends.triton.tiles import LOG2E

#: Columns and channels that a program holds, its warps, and the rows that are read before they are used.
FORWARD_TILE = (32, 32, 4, 2)
BACKWARD_TILE = (16, 32, 4, 2)
#: Rows of a strip.
ROWS = 14
#: Most programs that the gradients of weight and bias are added up in: as many as an H100 holds at a time.
PROGRAMS = 396

_SIZES = ("batch", "height", "width", "rows", "items", "programs")  # not those of which loads profit


@triton.jit
def _sigmoid(z):
    """1 / (1 + exp(-z)), without cancellation; an infinite exponential gives 0."""
    return 1.0 / (1.0 + tl.exp2(-z * LOG2E))


@triton.jit
def _columns(number, batch, height, width, channels, channel, TOKENS: tl.constexpr):
    """Places of columns in memory; masks of them and of their left and right neighbours: [TOKENS, BLOCK]."""
    column = number * TOKENS + tl.arange(0, TOKENS)
    image, w = column // width, column % width
    place = (image.to(tl.int64) * height * width + w)[:, None] * channels + channel[None, :]
    exists = (column < batch * width)[:, None] & (channel < channels)[None, :]
    return place, exists, exists & (w > 0)[:, None], exists & (w < width - 1)[:, None]


@triton.jit
def _at(place, h, width, channels):
    """Places of row h of the columns in memory."""
    return place + tl.cast(h, tl.int64) * width * channels


@triton.jit
def _below(h, end):
    """``h < end`` as a tile [1, 1]: in the interpreter, where h may be a number, masks need one."""
    return tl.zeros([1, 1], tl.int32) + h < end


@triton.jit
def _row(x, h, height, width, channels, place, exists, left, right):
    """Row h of left neighbours, columns and right neighbours, each [TOKENS, BLOCK]; zero outside the image."""
    x += _at(place, h, width, channels)
    inside = _below(h, height) & ~_below(h, 0)
    return (
        tl.load(x - channels, mask=left & inside, other=0.0).to(tl.float32),
        tl.load(x, mask=exists & inside, other=0.0).to(tl.float32),
        tl.load(x + channels, mask=right & inside, other=0.0).to(tl.float32),
    )


@triton.jit
def _weights(weight, channel, channels, i: tl.constexpr, MIRRORED: tl.constexpr):
    """Row i of the weights, three times [1, BLOCK]."""
    weight += channel * 9 + (8 - i * 3 if MIRRORED else i * 3)
    step: tl.constexpr = -1 if MIRRORED else 1
    exists = channel < channels
    return (
        tl.load(weight, mask=exists, other=0.0).to(tl.float32)[None, :],
        tl.load(weight + step, mask=exists, other=0.0).to(tl.float32)[None, :],
        tl.load(weight + 2 * step, mask=exists, other=0.0).to(tl.float32)[None, :],
    )


@triton.jit
def _plus(z, row, weights):
    """z plus the products of a row with one of the weights."""
    return tl.fma(row[2], weights[2], tl.fma(row[1], weights[1], tl.fma(row[0], weights[0], z)))


@triton.jit
def _store_sums(pointer, s, channels, channel, TOKENS: tl.constexpr, BLOCK: tl.constexpr, WARPS: tl.constexpr):
    """Store the sum over the columns of every warp, 10 · channels from one to the next: none waits for another."""
    ROWS: tl.constexpr = TOKENS // WARPS
    total = tl.sum(tl.reshape(s, (WARPS, ROWS, BLOCK)), 1)[:, None, :]
    total = tl.reshape(tl.broadcast_to(total, (WARPS, ROWS, BLOCK)), (TOKENS, BLOCK))
    row = tl.arange(0, TOKENS)[:, None]
    place = row // ROWS * 10 * channels + channel[None, :]
    tl.store(pointer + place, total, mask=(row % ROWS == 0) & (channel < channels)[None, :])


@triton.jit
def _offset(bias, channel, channels, TOKENS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """The bias, or zero, [TOKENS, BLOCK]."""
    z = tl.zeros([TOKENS, channel.shape[0]], tl.float32)
    if HAS_BIAS:
        z += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    return z


@triton.jit(do_not_specialize=_SIZES)
def _convolved(
    x,
    weight,
    bias,
    y,
    batch,
    height,
    width,
    channels,
    rows,
    HAS_BIAS: tl.constexpr,
    ADJOINT: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """``y = silu(conv(x) + bias)``; as ADJOINT, x convolved with the mirrored weights.

    Bytes: x in, ``s``, y out, ``s``.
    """
    blocks, strips = tl.cdiv(channels, BLOCK), tl.cdiv(height, rows)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(0) // blocks % strips * rows
    last = tl.minimum(first + rows, height)
    number = tl.program_id(0) // blocks // strips
    place, exists, left, right = _columns(number, batch, height, width, channels, channel, TOKENS)
    top = _weights(weight, channel, channels, 0, ADJOINT)
    middle = _weights(weight, channel, channels, 1, ADJOINT)
    bottom = _weights(weight, channel, channels, 2, ADJOINT)
    offset = _offset(bias, channel, channels, TOKENS, HAS_BIAS)
    before = _row(x, first - 1, height, width, channels, place, exists, left, right)
    row = _row(x, first, height, width, channels, place, exists, left, right)
    here = _plus(_plus(offset, before, top), row, middle)
    below = _plus(offset, row, top)
    for h in tl.range(first, last, AHEAD):
        for i in tl.static_range(AHEAD):
            row = _row(x, h + i + 1, height, width, channels, place, exists, left, right)
            z = _plus(here, row, bottom)
            here = _plus(below, row, middle)
            below = _plus(offset, row, top)
            if not ADJOINT:
                z *= _sigmoid(z)
            inside = exists & _below(h + i, last)
            tl.store(y + _at(place, h + i, width, channels), z.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _differentiated(
    dy,
    x,
    weight,
    bias,
    dz,
    sums,
    batch,
    height,
    width,
    channels,
    rows,
    items,
    programs,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
    WARPS: tl.constexpr,
):
    """dz, and each warp's part (10, C) of the gradients: nine of the weight, one of the bias.

    Program p of a block of channels walks through the items p, p + programs, …; an item is a strip of some columns.

    Bytes: x and dy in, ``2s``, dz out, ``s``.
    """
    blocks, strips = tl.cdiv(channels, BLOCK), tl.cdiv(height, rows)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    program = tl.program_id(0) // blocks
    top = _weights(weight, channel, channels, 0, False)
    middle = _weights(weight, channel, channels, 1, False)
    bottom = _weights(weight, channel, channels, 2, False)
    offset = _offset(bias, channel, channels, TOKENS, HAS_BIAS)
    zero = tl.zeros([TOKENS, BLOCK], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for item in tl.range(program, items, programs):
        first = item % strips * rows
        last = tl.minimum(first + rows, height)
        place, exists, left, right = _columns(item // strips, batch, height, width, channels, channel, TOKENS)
        above = _row(x, first - 1, height, width, channels, place, exists, left, right)
        here = _row(x, first, height, width, channels, place, exists, left, right)
        for h in tl.range(first, last, AHEAD):
            for i in tl.static_range(AHEAD):
                below = _row(x, h + i + 1, height, width, channels, place, exists, left, right)
                at = _at(place, h + i, width, channels)
                inside = exists & _below(h + i, last)
                slope = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
                z = _plus(_plus(_plus(offset, above, top), here, middle), below, bottom)
                s = _sigmoid(z)
                d = slope * s * tl.fma(z, 1.0 - s, 1.0)
                tl.store(dz + at, d.to(dz.dtype.element_ty), mask=inside)
                s0, s1, s2 = tl.fma(d, above[0], s0), tl.fma(d, above[1], s1), tl.fma(d, above[2], s2)
                s3, s4, s5 = tl.fma(d, here[0], s3), tl.fma(d, here[1], s4), tl.fma(d, here[2], s5)
                s6, s7, s8 = tl.fma(d, below[0], s6), tl.fma(d, below[1], s7), tl.fma(d, below[2], s8)
                s9 += d
                above, here = here, below
    sums += program * WARPS * 10 * channels
    total = (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9)
    for i in tl.static_range(10):
        _store_sums(sums + i * channels, total[i], channels, channel, TOKENS, BLOCK, WARPS)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, adjoint: bool) -> Tensor:
    batch, height, width, channels = x.shape
    tokens, block, warps, ahead = FORWARD_TILE
    y = torch.empty_like(x)
    programs = triton.cdiv(batch * width, tokens) * triton.cdiv(height, ROWS) * triton.cdiv(channels, block)
    operands: tuple[Any, ...] = (x, weight, weight if bias is None else bias, y, *x.shape, ROWS)
    constants = {"HAS_BIAS": bias is not None, "ADJOINT": adjoint, "TOKENS": tokens, "BLOCK": block, "AHEAD": ahead}
    launch(_convolved, (programs,), operands, warps, **constants)
    return y


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `vmamba.ops.depthwise_silu`; not for float64."""
    return _convolve(x.contiguous(), weight.contiguous(), bias, adjoint=False)


def depthwise_silu_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for (x, weight, bias), the first of x's dtype, the others float32."""
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
    batch, height, width, channels = x.shape
    tokens, block, warps, ahead = BACKWARD_TILE
    blocks = triton.cdiv(channels, block)
    items = triton.cdiv(batch * width, tokens) * triton.cdiv(height, ROWS)
    programs = torch.sym_min(items, max(1, PROGRAMS // blocks))
    dz, sums = torch.empty_like(x), x.new_empty((programs * warps, 10, channels), dtype=torch.float32)
    operands: tuple[Any, ...] = (dy, x, weight, weight if bias is None else bias, dz, sums, *x.shape, ROWS)
    constants = {"HAS_BIAS": bias is not None, "TOKENS": tokens, "BLOCK": block, "AHEAD": ahead, "WARPS": warps}
    launch(_differentiated, (programs * blocks,), (*operands, items, programs), warps, **constants)
    total = sums.sum(0)
    return _convolve(dz, weight, None, adjoint=True), total[:9].T.reshape(weight.shape), total[9].clone()
