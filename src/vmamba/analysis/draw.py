"""Every picture of the analyses: arrays in, PNG and SVG out.

Colours are those of Okabe and Ito and of matplotlib's perceptually uniform maps, which colour-blind people and black
and white printers can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'vmamba[analysis]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, stem: Path) -> list[Path]:
    from matplotlib import rc_context

    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vmamba"}):
        figure.savefig(paths[0], dpi=120)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def cost(models: Mapping[str, Mapping[str, int]], stem: Path, title: str) -> list[Path]:
    """Stacked bars of multiply-adds by kind of operation.

    Args:
        models: Multiply-adds by kind, by model.
        stem: Where to write, without the ending.
        title: Title.
    """
    figure = _figure(7.5, 1.3 + 0.33 * len(models))
    axis = figure.subplots()
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
    _bare(axis)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _save(figure, stem)


def _bare(axis: object) -> None:
    """No box around the axes."""
    axis.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]
