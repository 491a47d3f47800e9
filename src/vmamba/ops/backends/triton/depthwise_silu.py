"""Depthwise 3×3 convolution and SiLU of tokens in Triton: one pass over memory in channels-last layout.

A program holds BLOCK_W tokens of one image row for BLOCK channels, reads the nine shifted rows (neighbouring ones come
from the caches) and writes the result once. The backward pass computes the convolution again instead of keeping it:
`_pushed` writes dz = dy · silu'(z) and the program's share of the gradients of weight and bias; `_spread` convolves dz
with the mirrored weights. The shares are added up afterwards in a fixed order: no atomics.

Bytes per token and channel with s-byte storage: forward 2s, which is the least. Backward: the least is 3s (x and dy
in, dx out); `_pushed` reads 2s and writes 4 (dz in float32), `_spread` reads 4 and writes s: 3s + 8, and 80 / BLOCK_W
for the shares, written and read again.

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton.launch import launch
from vmamba.ops.backends.triton.tiles import sigmoid

#: Tokens of a row and channels that a program holds, and its warps.
TILE = (16, 64, 8)


@triton.jit
def _row(program, height, width, BLOCK_W: tl.constexpr):
    """Image and row (as one number), and for every token of a program the row in its image and the column."""
    across = tl.cdiv(width, BLOCK_W)
    row, column = program // across, program % across * BLOCK_W + tl.arange(0, BLOCK_W)
    return row.to(tl.int64), row % height + tl.zeros_like(column), column


@triton.jit
def _neighbours(x, row, h, w, channel, i, j, height, width, channels):
    """x at (h + i, w + j), zero outside the image: [BLOCK_W, BLOCK] of float32."""
    inside = (h + i >= 0) & (h + i < height) & (w + j >= 0) & (w + j < width)
    place = ((row + i) * width + w + j)[:, None] * channels + channel[None, :]
    return tl.load(x + place, mask=inside[:, None] & (channel < channels)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _convolved(x, weight, bias, row, h, w, channel, height, width, channels, HAS_BIAS: tl.constexpr):
    """The convolution before the activation."""
    exists = channel < channels
    z = tl.zeros([w.shape[0], channel.shape[0]], tl.float32)
    if HAS_BIAS:
        z += tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)[None, :]
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            factor = tl.load(weight + channel * 9 + (i * 3 + j), mask=exists, other=0.0).to(tl.float32)
            neighbours = _neighbours(x, row, h, w, channel, i - 1, j - 1, height, width, channels)
            z = tl.fma(factor[None, :], neighbours, z)
    return z


@triton.jit
def _forward(
    x, weight, bias, y, height, width, channels, HAS_BIAS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK: tl.constexpr
):
    """``y = silu(conv(x) + bias)``. Bytes: x in, ``s``, y out, ``s``; moved once, the neighbours from the caches."""
    row, h, w = _row(tl.program_id(0), height, width, BLOCK_W)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = _convolved(x, weight, bias, row, h, w, channel, height, width, channels, HAS_BIAS)
    inside = (w < width)[:, None] & (channel < channels)[None, :]
    place = (row * width + w)[:, None] * channels + channel[None, :]
    tl.store(y + place, (z * sigmoid(z)).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _pushed(
    dy,
    x,
    weight,
    bias,
    dz,
    shares,
    height,
    width,
    channels,
    HAS_BIAS: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dz, and a program's shares (10, C) of the gradients: nine of the weight, one of the bias.

    Bytes: x and dy in, ``2s``, dz out, ``4``, shares out, ``40 / BLOCK_W``; moved once, the neighbours from the caches.
    """
    row, h, w = _row(tl.program_id(0), height, width, BLOCK_W)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < channels
    z = _convolved(x, weight, bias, row, h, w, channel, height, width, channels, HAS_BIAS)
    inside = (w < width)[:, None] & exists[None, :]
    place = (row * width + w)[:, None] * channels + channel[None, :]
    s = sigmoid(z)
    d = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32) * s * (1.0 + z * (1.0 - s))
    tl.store(dz + place, d, mask=inside)
    shares += tl.program_id(0).to(tl.int64) * 10 * channels + channel
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            u = _neighbours(x, row, h, w, channel, i - 1, j - 1, height, width, channels)
            tl.store(shares + (i * 3 + j) * channels, tl.sum(d * u, 0), mask=exists)
    tl.store(shares + 9 * channels, tl.sum(d, 0), mask=exists)


@triton.jit
def _spread(dz, weight, dx, height, width, channels, BLOCK_W: tl.constexpr, BLOCK: tl.constexpr):
    """dx: dz convolved with the mirrored weights. Bytes: dz in, ``4``, dx out, ``s``; moved once, as above."""
    row, h, w = _row(tl.program_id(0), height, width, BLOCK_W)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < channels
    d = tl.zeros([BLOCK_W, BLOCK], tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            factor = tl.load(weight + channel * 9 + (i * 3 + j), mask=exists, other=0.0).to(tl.float32)
            neighbours = _neighbours(dz, row, h, w, channel, 1 - i, 1 - j, height, width, channels)
            d = tl.fma(factor[None, :], neighbours, d)
    place = (row * width + w)[:, None] * channels + channel[None, :]
    tl.store(dx + place, d.to(dx.dtype.element_ty), mask=(w < width)[:, None] & exists[None, :])


def _grid(x: Tensor) -> tuple[tuple[int, int], dict[str, int], int]:
    batch, height, width, channels = x.shape
    columns, block, warps = TILE
    grid = (batch * height * triton.cdiv(width, columns), triton.cdiv(channels, block))
    return grid, {"BLOCK_W": columns, "BLOCK": block}, warps


def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `vmamba.ops.depthwise_silu`; not for float64."""
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    grid, sizes, warps = _grid(x)
    operands: tuple[Any, ...] = (x, weight, weight if bias is None else bias, y, *x.shape[1:])
    launch(_forward, grid, operands, warps, HAS_BIAS=bias is not None, **sizes)
    return y


def depthwise_silu_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for (x, weight, bias), the first of x's dtype, the others float32."""
    dy, x, weight = dy.contiguous(), x.contiguous(), weight.contiguous()
    channels = x.shape[3]
    grid, sizes, warps = _grid(x)
    dz, dx = torch.empty_like(x, dtype=torch.float32), torch.empty_like(x)
    shares = x.new_empty((grid[0], 10, channels), dtype=torch.float32)
    operands: tuple[Any, ...] = (dy, x, weight, weight if bias is None else bias, dz, shares, *x.shape[1:])
    launch(_pushed, grid, operands, warps, HAS_BIAS=bias is not None, **sizes)
    launch(_spread, grid, (dz, weight, dx, *x.shape[1:]), warps, **sizes)
    total = shares.sum(0)
    return dx, total[:9].T.reshape(weight.shape), total[9].clone()
