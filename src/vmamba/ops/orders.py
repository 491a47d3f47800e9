"""Ready-made orders for `scan_routes`: ways through an H × W grid, as row-major indices of its tokens.

Functions of one route give (L,), those of several (K, L), int64. ``torch.stack`` makes several routes of single ones,
``order.flip(-1)`` goes the other way. -1 is padding: a place that belongs to no token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops.routes import routes

Device = torch.device | str | None


def _grid(height: int, width: int, device: Device) -> Tensor:
    return torch.arange(height * width, device=device).view(height, width)


def _sorted(*keys: Tensor) -> Tensor:
    """Tokens by increasing keys, the first key first; keys are (H, W), or fit to it."""
    shape = torch.broadcast_shapes(*(key.shape for key in keys))
    order = torch.arange(shape.numel(), device=keys[0].device)
    for key in reversed(keys):
        order = order[key.expand(shape).flatten()[order].argsort(stable=True)]
    return order


def _positions(height: int, width: int, device: Device) -> tuple[Tensor, Tensor]:
    return torch.arange(height, device=device)[:, None], torch.arange(width, device=device)[None]


def rows(height: int, width: int, device: Device = None) -> Tensor:
    """Row after row, each from the left: (H·W,)."""
    return _grid(height, width, device).flatten()


def columns(height: int, width: int, device: Device = None) -> Tensor:
    """Column after column, each from the top: (H·W,)."""
    return _grid(height, width, device).T.flatten()


def cross(height: int, width: int, device: Device = None) -> Tensor:
    """VMamba's four routes: rows, columns, and both backward: (4, H·W)."""
    return torch.stack([route.order(height, width, device) for route in routes("cross")])


def snake(height: int, width: int, device: Device = None) -> Tensor:
    """Row after row, every second one from the right, so that neighbours in time are neighbours in space: (H·W,).

    Source: the continuous scans of PlainMamba (Yang et al., 2024) and ZigMa (Hu et al., 2024).
    """
    row, column = _positions(height, width, device)
    return _sorted(row, torch.where(row % 2 == 0, column, -column))


def diagonals(height: int, width: int, device: Device = None, *, wrapped: bool = False) -> Tensor:
    """Diagonals from the top left to the bottom right: (H·W,).

    The one in the bottom left corner comes first. With `wrapped` a diagonal goes on at the left edge when it reaches
    the right one, and the one from the top left corner comes first, as in RS-Mamba (Zhao et al., 2024).
    """
    row, column = _positions(height, width, device)
    return _sorted((column - row) % width if wrapped else column - row, row)


def antidiagonals(height: int, width: int, device: Device = None, *, wrapped: bool = False) -> Tensor:
    """Diagonals from the top right to the bottom left, the one in the top left corner first: (H·W,).

    With `wrapped` a diagonal goes on at the right edge when it reaches the left one.
    """
    row, column = _positions(height, width, device)
    return _sorted((column + row) % width if wrapped else column + row, row)


def zigzag(height: int, width: int, device: Device = None) -> Tensor:
    """Antidiagonals, every second one upward, as JPEG orders frequencies: (H·W,)."""
    row, column = _positions(height, width, device)
    diagonal = row + column
    return _sorted(diagonal, torch.where(diagonal % 2 == 0, -row, row))


def eight_directions(height: int, width: int, device: Device = None) -> Tensor:
    """RS-Mamba's routes: rows, columns, both backward, wrapped diagonals, antidiagonals, both backward: (8, H·W).

    Source: Zhao et al., "RS-Mamba for Large Remote Sensing Image Dense Prediction", 2024.
    """
    down = diagonals(height, width, device, wrapped=True), antidiagonals(height, width, device, wrapped=True)
    oblique = torch.stack(down)
    return torch.cat([cross(height, width, device), oblique, oblique.flip(-1)])


def z_order(height: int, width: int, device: Device = None) -> Tensor:
    """Morton's curve: quadrants in the order of a Z, and so on in each of them: (H·W,).

    For other sizes than powers of two, that of the next power of two without what lies outside.
    """
    row, column = _positions(height, width, device)
    key = torch.zeros_like(row + column)
    for bit in range(max(height, width).bit_length()):
        key = key | ((column >> bit) & 1) << (2 * bit) | ((row >> bit) & 1) << (2 * bit + 1)
    return _sorted(key)


def hilbert(height: int, width: int, device: Device = None) -> Tensor:
    """Hilbert's curve, on which neighbours in time are neighbours in space, and near in space is near in time: (H·W,).

    For other sizes than squares of a power of two, that of the next such square without what lies outside; it then has
    jumps.
    """
    row, column = (t.expand(height, width) for t in _positions(height, width, device))
    distance = torch.zeros_like(row)
    size = 1 << max(max(height, width) - 1, 0).bit_length()
    half = size // 2
    while half:
        right, below = (column & half) > 0, (row & half) > 0
        # Quadrants in the order top left, bottom left, bottom right, top right; the first and last are turned.
        distance = distance + half * half * torch.where(right, torch.where(below, 2, 3), below.long())
        flipped = right & ~below
        row, column = torch.where(flipped, size - 1 - row, row), torch.where(flipped, size - 1 - column, column)
        row, column = torch.where(below, row, column), torch.where(below, column, row)
        half //= 2
    return _sorted(distance)


def windows(height: int, width: int, size: int, device: Device = None, *, by_columns: bool = False) -> Tensor:
    """Window after window, row by row in each: (L,), L = ⌈H/size⌉·⌈W/size⌉·size².

    Windows that the edge cuts are filled up with padding, in the order of the visit.

    Args:
        height: H.
        width: W.
        size: Height and width of a window.
        device: Of the result.
        by_columns: Visit columns of windows, and columns of tokens in each.

    Source: Huang et al., "LocalMamba", 2024.
    """
    grid = _padded(_grid(height, width, device), size)
    tiles = grid.unflatten(1, (-1, size)).unflatten(
        0, (-1, size)
    )  # (rows of windows, rows, columns of windows, columns)
    return tiles.permute((2, 0, 3, 1) if by_columns else (0, 2, 1, 3)).flatten()


def strided(height: int, width: int, step: int, device: Device = None) -> Tensor:
    """Every step-th row and column, from each of step² starts: (step², L), L = ⌈H/step⌉·⌈W/step⌉; no token twice.

    The start moves down, then right. Starts in even rows are scanned row by row, the others column by column. Where the
    grid ends early there is padding.

    Source: Pei et al., "EfficientVMamba", 2024.
    """
    grid = _padded(_grid(height, width, device), step)
    subsets = []
    for right in range(step):
        for down in range(step):
            subset = grid[down::step, right::step]
            subsets.append((subset if down % 2 == 0 else subset.T).flatten())
    return torch.stack(subsets)


def _padded(grid: Tensor, size: int) -> Tensor:
    """Fill up rows and columns with -1 to multiples of `size`."""
    height, width = ((n + size - 1) // size * size for n in grid.shape)  # so, torch.export can follow the sizes
    return F.pad(grid, (0, width - grid.shape[1], 0, height - grid.shape[0]), value=-1)
