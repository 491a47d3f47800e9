"""Figures by matplotlib: files that are whole or not there, and text in them as it stands.

Colours are those of Okabe and Ito and of matplotlib's perceptually uniform maps, which colour-blind people and black
and white printers can tell apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.errors import MissingPackageError
from vmamba.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


@contextmanager
def figure(*paths: Path, size: tuple[float, float], extra: str = "analysis", dpi: int = 100) -> Iterator[Figure]:
    """A figure that is written when the ``with`` block ends.

    Args:
        *paths: Files, whose endings name their formats: ``.png``, ``.svg``.
        size: Width and height in inches.
        extra: The extra of this package that brings matplotlib, for the error.
        dpi: Pixels per inch.

    Raises:
        MissingPackageError: If matplotlib is not installed.
        OSError: If a file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("matplotlib", extra) from None
    plain_text = rc_context({"text.parse_math": False})  # a class may be called "$5 note"
    same_bytes = rc_context({"svg.fonttype": "none", "svg.hashsalt": "vmamba"})
    with plain_text, same_bytes, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a box stands for the character
        result = Figure(figsize=size, dpi=dpi, layout="constrained")
        yield result
        for line in (line for axes in result.axes for line in (axes.xaxis, axes.yaxis)):
            if line.get_scale() == "log":  # whose own labels are mathematics, which is off
                line.set_major_formatter("{x:g}")
        for path in paths:
            kind = path.suffix.removeprefix(".")
            with atomic_write(path) as file:
                result.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)


def remove_frame(axis: object) -> None:
    """Leave out the right and the upper edge of an axis."""
    axis.spines[["right", "top"]].set_visible(False)  # type: ignore[attr-defined]
