"""The picture of the ready-made orders: ``python -m vmamba.analysis.draw_orders docs/orders``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from vmamba.analysis.draw import ENDINGS
from vmamba.ops import orders
from vmamba.plots import COLOURS, figure

#: Panels: title, height, width, routes (K, L).
Panel = tuple[str, int, int, Tensor]


def ready_made(size: int = 8) -> list[Panel]:
    """Every order of `vmamba.ops.orders`, on a square grid; those with padding on one that they do not divide."""
    odd = size - 1
    names = ("rows", "columns", "snake", "diagonals", "antidiagonals", "zigzag", "z_order", "hilbert")
    panels: list[Panel] = [(name, size, size, getattr(orders, name)(size, size)[None]) for name in names]
    down, up = orders.eight_directions(size, size)[4:6]
    panels += [
        ("windows(2)", size, size, orders.windows(size, size, 2)[None]),
        ("windows(4)", size, size, orders.windows(size, size, 4)[None]),
        ("windows(4), padded", odd, odd, orders.windows(odd, odd, 4)[None]),
        ("windows(4, by_columns)", size, size, orders.windows(size, size, 4, by_columns=True)[None]),
        ("diagonals(wrapped)", size, size, down[None]),
        ("antidiagonals(wrapped)", size, size, up[None]),
        ("strided(2), 4 routes", size, size, orders.strided(size, size, 2)),
        ("cross, 4 routes", size, size, orders.cross(size, size)),
    ]
    return panels


def draw(panels: list[Panel], stem: Path, per_line: int = 4) -> list[Path]:
    """Draw every route as a line from its first token, a dot, to its last; steps to a far token are thin.

    Args:
        panels: What to draw.
        stem: Where to write, without the ending.
        per_line: Panels side by side.

    Returns:
        The files written.
    """
    files = [stem.with_name(stem.name + ending) for ending in ENDINGS]
    lines = -(-len(panels) // per_line)
    with figure(*files, size=(2.4 * per_line, 2.6 * lines)) as page:
        for axis, (title, height, width, routes) in zip(page.subplots(lines, per_line).flat, panels, strict=False):
            for k, route in enumerate(routes):
                tokens = route[route >= 0]
                shift = 0.09 * (k - (len(routes) - 1) / 2)  # side by side where routes lie on each other
                y, x = (tokens // width + shift), (tokens % width + shift)
                length = torch.maximum(y.diff().abs(), x.diff().abs())
                near = length < length.min() + 0.5 if len(tokens) > 1 else length
                for t in range(len(tokens) - 1):
                    style = {"linewidth": 1.5} if near[t] else {"linewidth": 0.4, "alpha": 0.5}
                    axis.plot(x[t : t + 2].tolist(), y[t : t + 2].tolist(), color=COLOURS[k], **style)
                axis.plot(float(x[0]), float(y[0]), marker="o", markersize=4.5, color=COLOURS[k])
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[], xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6), aspect="equal")
    return files


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*draw(ready_made(), Path(sys.argv[1])), sep="\n")
