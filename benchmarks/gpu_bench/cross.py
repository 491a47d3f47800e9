"""The copies along the four routes and back, as one Triton kernel; for the unfused pipeline alone."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton.launch import launch

#: Rows and columns of an image that a program copies, and its warps.
TILE = (32, 32, 4)


@triton.jit
def _cross(x, y, channels, height, width, MERGE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of one channel of an image, x (B, D, H, W), to its four places in y (B, 4, D, H·W), or their sum back."""
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    plane, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    h = (tile // across * ROWS + tl.arange(0, ROWS))[:, None]
    w = (tile % across * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    exists = (h < height) & (w < width)
    length = height * width
    rows, columns = h * width + w, w * height + h
    x += plane * length + rows
    y += (plane // channels * 4 * channels + plane % channels) * length
    route = tl.cast(channels, tl.int64) * length
    if MERGE:
        total = tl.load(y + rows, mask=exists, other=0.0).to(tl.float32)
        total += tl.load(y + route + columns, mask=exists, other=0.0).to(tl.float32)
        total += tl.load(y + 2 * route + (length - 1 - rows), mask=exists, other=0.0).to(tl.float32)
        total += tl.load(y + 3 * route + (length - 1 - columns), mask=exists, other=0.0).to(tl.float32)
        tl.store(x, total.to(x.dtype.element_ty), mask=exists)
    else:
        value = tl.load(x, mask=exists, other=0.0)
        tl.store(y + rows, value, mask=exists)
        tl.store(y + route + columns, value, mask=exists)
        tl.store(y + 2 * route + (length - 1 - rows), value, mask=exists)
        tl.store(y + 3 * route + (length - 1 - columns), value, mask=exists)


def cross(x: Tensor, y: Tensor, merge: bool) -> None:
    """Copy x, (B, D, H, W), along the routes into y, (B, 4, D, H·W), or, to merge, add y up in x; both contiguous."""
    batch, channels, height, width = x.shape
    rows, columns, warps = TILE
    programs = batch * channels * triton.cdiv(height, rows) * triton.cdiv(width, columns)
    launch(_cross, (programs,), (x, y, channels, height, width), warps, MERGE=merge, ROWS=rows, COLUMNS=columns)
