"""Every picture of the analyses: arrays in, PNG and SVG out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmamba.plots import COLOURS, figure, remove_frame

#: Of every picture.
ENDINGS = (".png", ".svg")


def _files(stem: Path) -> list[Path]:
    return [stem.with_name(stem.name + ending) for ending in ENDINGS]


def cost(models: Mapping[str, Mapping[str, int]], stem: Path, title: str) -> list[Path]:
    """Stacked bars of multiply-adds by kind of operation.

    Args:
        models: Multiply-adds by kind, by model.
        stem: Path of the pictures without the ending.
        title: Title.
    """
    with figure(*_files(stem), size=(7.5, 1.3 + 0.33 * len(models))) as page:
        axis = page.subplots()
        names = list(models)
        left = [0.0] * len(names)
        for kind, colour in zip(next(iter(models.values())), COLOURS, strict=False):
            values = [models[name][kind] / 1e9 for name in names]
            axis.barh(names, values, left=left, color=colour, edgecolor="white", linewidth=0.5, label=kind)
            left = [a + b for a, b in zip(left, values, strict=True)]
        for i, total in enumerate(left):
            axis.annotate(f" {total:.2f}", (total, i), va="center", fontsize=9)
        axis.invert_yaxis()
        axis.margins(x=0.1)
        axis.set_xlabel("multiply-adds, 10⁹")
        axis.set_title(title, fontsize=11)
        remove_frame(axis)
        page.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _files(stem)


def attention(
    image: NDArray[np.uint8],
    queries: Sequence[tuple[int, int]],
    rows: NDArray[np.floating[Any]],
    routes: Sequence[str],
    stem: Path,
    title: str,
    *,
    signed: bool = False,
) -> list[Path]:
    """Heat maps of the rows of attention: a line per query, a panel per route, and their sum.

    Magnitudes are on a logarithmic scale over three decades below the largest of a panel, signed values on a linear
    one around zero. Tokens that a route has not visited before the query are grey.

    Args:
        image: (H, W, 3).
        queries: (row, column) in tokens.
        rows: (queries, routes, h, w).
        routes: Their names.
        stem: Path of the pictures without the ending.
        title: Title.
        signed: The rows have signs.
    """
    from matplotlib.colors import LogNorm, Normalize

    height, width = rows.shape[2:]
    names = ["query", *routes, "sum of routes"]
    with figure(*_files(stem), size=(1.75 * len(names) + 0.6, 1.6 * len(queries) * height / width + 0.7)) as page:
        grid = page.subplots(len(queries), len(names), squeeze=False)
        for axes, (y, x), maps in zip(grid, queries, rows, strict=True):
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes[0].imshow(image, extent=extent)
            for axis, values in zip(axes[1:], [*maps, maps.sum(0)], strict=True):
                largest = float(np.abs(values).max()) or 1.0
                norm = Normalize(-1, 1) if signed else LogNorm(1e-3, 1, clip=True)
                visited = np.ma.masked_equal(values / largest, 0)
                shown = axis.imshow(visited, norm=norm, cmap="RdBu_r" if signed else "viridis", extent=extent)
                axis.set_facecolor("#CCCCCC")
            for axis in axes:
                axis.plot(x, y, marker="s", markersize=6, markerfacecolor="none", markeredgecolor="#D55E00", mew=1.6)
                axis.set(xticks=[], yticks=[])
        for axis, name in zip(grid[0], names, strict=True):
            axis.set_title(name, fontsize=10)
        page.colorbar(shown, ax=grid[:, -1], label="fraction of the panel's largest", shrink=0.9)
        page.suptitle(title, fontsize=11)
    return _files(stem)


def activation(
    image: NDArray[np.uint8],
    positions: Sequence[tuple[int, int]],
    similarity: NDArray[np.floating[Any]],
    dependence: NDArray[np.floating[Any]],
    seen: NDArray[np.floating[Any]],
    stem: Path,
    layer: str,
    label: str,
) -> list[Path]:
    """A line per position (the image, similarity, dependence), and beside them where the class is seen.

    Args:
        image: (H, W, 3).
        positions: (row, column) in the map of the layer.
        similarity: (positions, h, w), cosines.
        dependence: (positions, h', w'), not negative.
        seen: Class activation, (H, W) in [0, 1].
        stem: Path of the pictures without the ending.
        layer: Its name.
        label: Name of the class.
    """
    from matplotlib.colors import LogNorm

    height, width = similarity.shape[1:]
    with figure(*_files(stem), size=(9.4, 2.1 * len(positions) * height / width + 0.9)) as page:
        left, right = page.subfigures(1, 2, width_ratios=(3.2, 1.5), squeeze=False)[0]
        grid = left.subplots(len(positions), 3, squeeze=False)
        box = (-0.5, width - 0.5, height - 0.5, -0.5)
        for axes, (y, x), cosines, strengths in zip(grid, positions, similarity, dependence, strict=True):
            axes[0].imshow(image, extent=box)
            alike = axes[1].imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, extent=box)
            norm = LogNorm(1e-3, 1, clip=True)
            strength = axes[2].imshow(strengths / (strengths.max() or 1.0), norm=norm, cmap="viridis", extent=box)
            for axis in axes:
                axis.plot(x, y, marker="s", markersize=6, markerfacecolor="none", markeredgecolor="#D55E00", mew=1.6)
                axis.set(xticks=[], yticks=[])
        for axis, name in zip(grid[0], ("position", "similarity of output", "dependence on input"), strict=True):
            axis.set_title(name, fontsize=10)
        left.colorbar(alike, ax=grid[:, 1], label="cosine", location="bottom", shrink=0.9)
        left.colorbar(strength, ax=grid[:, 2], label="fraction of the largest", location="bottom", shrink=0.9)
        left.suptitle(layer, fontsize=11)
        axis = right.subplots()
        axis.imshow(image)
        shown = axis.imshow(seen, cmap="viridis", vmin=0, vmax=1, alpha=0.6)
        axis.set(xticks=[], yticks=[])
        right.colorbar(shown, ax=axis, label="Grad-CAM", location="bottom", shrink=0.9)
        right.suptitle(label, fontsize=11)
    return _files(stem)


def receptive_fields(
    maps: Mapping[str, NDArray[np.floating[Any]]],
    fractions: Mapping[str, Sequence[float]],
    levels: Sequence[float],
    stem: Path,
) -> list[Path]:
    """Energy of every pixel on a logarithmic scale over four decades, one panel per model.

    Args:
        maps: (H, W) by the name of the model.
        fractions: Of the pixels, those that hold each of `levels` of the energy, by the name of the model.
        levels: Fractions of the energy.
        stem: Path of the pictures without the ending.
    """
    from matplotlib.colors import LogNorm

    columns = min(len(maps), 5)
    lines = -(-len(maps) // columns)
    with figure(*_files(stem), size=(2.3 * columns + 0.8, 3.0 * lines + 0.5)) as page:
        grid = page.subplots(lines, columns, squeeze=False)
        for axis in grid.flat[len(maps) :]:
            axis.set_visible(False)
        for axis, (name, energy) in zip(grid.flat, maps.items(), strict=False):
            norm = LogNorm(1e-4, 1, clip=True)
            coarse = _coarser(energy, 112)
            shown = axis.imshow(coarse / (coarse.max() or 1.0), norm=norm, cmap="viridis", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.set_title(name, fontsize=9)
            held = (f"{level:.0%} in {part:.2%}" for level, part in zip(levels, fractions[name], strict=True))
            axis.set_xlabel("\n".join(held), fontsize=9)
        page.suptitle("Effective receptive fields, and the fraction of the pixels that hold the energy", fontsize=11)
        page.colorbar(shown, ax=grid, label="fraction of the largest", shrink=0.8)
    return _files(stem)


def precision(rows: Sequence[Mapping[str, Any]], stem: Path, title: str) -> list[Path]:
    """Bars of the relative error, logarithmic, and of the time of an image, in each precision.

    Args:
        rows: With precision, relative_error and ms.
        stem: Path of the pictures without the ending.
        title: Title.
    """
    with figure(*_files(stem), size=(8, 1.2 + 0.35 * len(rows))) as page:
        error, time = page.subplots(1, 2, sharey=True)
        names, colours = [row["precision"] for row in rows], COLOURS[: len(rows)]
        error.barh(names, [float(row["relative_error"]) for row in rows], color=colours)
        error.set_xscale("log")
        error.set_xlabel("relative error")
        time.barh(names, [row["ms"] for row in rows], color=colours)
        time.set_xlabel("ms, batch 1")
        error.invert_yaxis()
        remove_frame(error)
        remove_frame(time)
        page.suptitle(title, fontsize=11)
    return _files(stem)


def throughput(rows: Sequence[Mapping[str, Any]], stem: Path, title: str) -> list[Path]:
    """Bars of images per second with their quartiles, and of peak memory; a line of panels per mode.

    Args:
        rows: With model, mode, batch, ms, ms_low, ms_high and peak_memory_mib.
        stem: Path of the pictures without the ending.
        title: Title.
    """
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = list(dict.fromkeys(row["model"] for row in rows))
    with figure(*_files(stem), size=(9.5, len(modes) * (0.9 + 0.3 * len(names)) + 0.4)) as page:
        grid = page.subplots(len(modes), 2, squeeze=False, sharey=True)
        for (speed, memory), mode in zip(grid, modes, strict=True):
            chosen = [row for row in rows if row["mode"] == mode]
            labels, colours = [row["model"] for row in chosen], [COLOURS[names.index(row["model"])] for row in chosen]
            median, low, high = (
                [1e3 * row["batch"] / row[key] for row in chosen] for key in ("ms", "ms_high", "ms_low")
            )
            spread = [
                [m - a for m, a in zip(median, low, strict=True)],
                [b - m for m, b in zip(median, high, strict=True)],
            ]
            speed.barh(labels, median, xerr=spread, color=colours, error_kw={"lw": 1, "capsize": 3})
            speed.set_xlabel(f"{mode}, images/s (median, quartiles)")
            memory.barh(labels, [row["peak_memory_mib"] or 0 for row in chosen], color=colours)
            memory.set_xlabel(f"{mode}, peak memory above the model, MiB")
            remove_frame(speed)
            remove_frame(memory)
        grid[0, 0].invert_yaxis()
        page.suptitle(title, fontsize=11)
    return _files(stem)


def scaling(rows: Sequence[Mapping[str, Any]], stem: Path, title: str) -> list[Path]:
    """Time and peak memory per pixel against the height of the image: flat where the cost grows linearly.

    Args:
        rows: As `throughput`, with height and width.
        stem: Path of the pictures without the ending.
        title: Title.
    """
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = list(dict.fromkeys(row["model"] for row in rows))
    with figure(*_files(stem), size=(9.5, 3.4 * len(modes) + 0.6)) as page:
        grid = page.subplots(len(modes), 2, squeeze=False)
        for axes, mode in zip(grid, modes, strict=True):
            for name, colour, marker in zip(names, COLOURS, "osD^vP*X", strict=False):
                chosen = [row for row in rows if (row["mode"], row["model"]) == (mode, name)]
                sizes = [row["height"] for row in chosen]
                pixels = [row["batch"] * row["height"] * row["width"] for row in chosen]
                times = [row["ms"] * 1e6 / p for row, p in zip(chosen, pixels, strict=True)]
                axes[0].plot(sizes, times, marker=marker, color=colour, label=name)
                memory = [
                    float(row["peak_memory_mib"] or "nan") * 2**20 / p for row, p in zip(chosen, pixels, strict=True)
                ]
                axes[1].plot(sizes, memory, marker=marker, color=colour)
            for axis, what in zip(axes, ("time per pixel, ns", "peak memory per pixel, bytes"), strict=True):
                axis.set_xscale("log", base=2)
                axis.set_xticks(sizes, list(map(str, sizes)))
                axis.minorticks_off()
                axis.set_ylim(bottom=0)
                axis.set_xlabel("height and width of the image, pixels")
                axis.set_ylabel(f"{mode}: {what}")
                remove_frame(axis)
        page.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        page.suptitle(title, fontsize=11)
    return _files(stem)


def scans(rows: Sequence[Mapping[str, Any]], each: Sequence[Mapping[str, Any]], stem: Path, title: str) -> list[Path]:
    """A point per seed and a bar at their mean, one panel per test.

    Args:
        rows: With test, scan and mean (per cent).
        each: With test, scan, seed and accuracy (0 to 1).
        stem: Path of the pictures without the ending.
        title: Title.
    """
    tests = list(dict.fromkeys(row["test"] for row in rows))
    with figure(*_files(stem), size=(4.0 * len(tests) + 0.5, 3.4)) as page:
        for axis, test in zip(page.subplots(1, len(tests), squeeze=False)[0], tests, strict=True):
            chosen = [row for row in rows if row["test"] == test]
            for x, (row, colour) in enumerate(zip(chosen, COLOURS, strict=False)):
                values = [100 * o["accuracy"] for o in each if (o["test"], o["scan"]) == (test, row["scan"])]
                axis.hlines(row["mean"], x - 0.25, x + 0.25, color=colour, linewidth=3)
                axis.plot([x] * len(values), values, "o", color="white", markeredgecolor=colour, markersize=6)
                axis.annotate(f"{row['mean']:.1f}", (x + 0.28, row["mean"]), va="center", fontsize=9)
            axis.set_xticks(range(len(chosen)), [row["scan"] for row in chosen], fontsize=9, rotation=20)
            axis.set_xlim(-0.5, len(chosen) - 0.2)
            axis.set_title(test, fontsize=11)
            axis.set_ylabel("accuracy on test images, %")
            remove_frame(axis)
        page.suptitle(title, fontsize=11)
    return _files(stem)


def steps(rows: Sequence[Mapping[str, Any]], stem: Path, title: str) -> list[Path]:
    """Images per second of each step, from top to bottom, on a logarithmic scale.

    Args:
        rows: With step, backend, macs, batch, ms, ms_low and ms_high.
        stem: Path of the pictures without the ending.
        title: Title.
    """
    with figure(*_files(stem), size=(9, 0.42 * len(rows) + 1.2)) as page:
        axis = page.subplots()
        labels = [f"{row['step']} ({row['backend']})" for row in rows]
        median, low, high = ([1e3 * row["batch"] / row[key] for row in rows] for key in ("ms", "ms_high", "ms_low"))
        spread = [[m - a for m, a in zip(median, low, strict=True)], [b - m for m, b in zip(median, high, strict=True)]]
        axis.barh(labels, median, xerr=spread, color=COLOURS[0], error_kw={"lw": 1, "capsize": 3})
        axis.set_xscale("log")
        for y, (row, value, upper) in enumerate(zip(rows, median, high, strict=True)):
            axis.annotate(
                f"  {value:.3g}   ({row['macs'] / 1e9:.1f} G)", (max(value, upper), y), va="center", fontsize=9
            )
        axis.set_xlim(right=max(high) * 4)
        axis.invert_yaxis()
        axis.set_xlabel("images/s (median, quartiles); in brackets multiply-adds")
        axis.set_title(title, fontsize=11)
        remove_frame(axis)
    return _files(stem)


def _coarser(values: NDArray[np.floating[Any]], longest: int) -> NDArray[np.floating[Any]]:
    """Averages over squares, so that neither length exceeds `longest`; a remainder is left out."""
    step = -(-max(values.shape) // longest)
    height, width = (length // step for length in values.shape)
    return values[: height * step, : width * step].reshape(height, step, width, step).mean((1, 3))
