"""Label maps: pictures whose values are classes. Reading them, and seeing whether their values can be meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmamba.data.images import open_image
from vmamba.errors import DataError, ImageError, OptionError

#: Label of pixels without a class, after reading.
IGNORE_INDEX = 255
#: Values of label maps that stand for "no class", unless `label_values` says otherwise.
NO_CLASS = (0, 255)
#: Values that a label map may have.
VALUES = 2**16
_INVALID = 256


def label_table(classes: int, label_values: Sequence[int] | None = None) -> NDArray[np.uint16]:
    """Value of a label map → class, `IGNORE_INDEX`, or 256 for a value that must not occur; uint16 (65536,).

    Args:
        classes: Number of classes.
        label_values: The value of each class in order; None for 1, 2, 3 …, as in ADE20K.

    Raises:
        OptionError: If `label_values` are not as many as the classes, or not different values from 0 to 65535.
    """
    values = list(range(1, classes + 1)) if label_values is None else list(label_values)
    if len(values) != classes:
        raise OptionError(f"label_values names {len(values)} values, but there are {classes} classes")
    if len(set(values)) < len(values) or not all(0 <= value < VALUES for value in values):
        raise OptionError(f"label_values must be different numbers from 0 to {VALUES - 1}, got {values}")
    table = np.full(VALUES, _INVALID, np.uint16)
    table[list(NO_CLASS)] = IGNORE_INDEX
    table[values] = np.arange(classes)
    return table


def read_values(path: Path, *, max_pixels: int | None = None) -> NDArray[np.integer]:
    """The values of a label map, (height, width).

    One channel of 1, 8 or 16 bits (a palette's indices), or several channels that are equal; at most `max_pixels`.

    Raises:
        ImageError: If it cannot be read, or has colours or other values.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        mode, values = image.mode, np.array(image)
    if mode in ("RGB", "RGBA") and (values[..., :3] == values[..., :1]).all():
        mode, values = "L", values[..., 0]
    if mode in ("LA", "PA"):
        mode, values = "L", values[..., 0]
    if mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        hint = "; write the number of its class into each pixel instead of a colour" if mode.startswith("RGB") else ""
        raise ImageError(f"{path}: a label map has one channel of whole numbers, this one has mode {mode}{hint}")
    if mode == "1":
        return values.astype(np.uint8)
    if mode == "I" and (values.min() < 0 or values.max() >= VALUES):
        raise ImageError(f"{path}: has values from {values.min()} to {values.max()}; labels are from 0 to {VALUES - 1}")
    return values


def read_labels(path: Path, table: NDArray[np.uint16], *, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """The class of each pixel, `IGNORE_INDEX` for none; uint8 (height, width).

    Args:
        path: The label map.
        table: See `label_table`.
        max_pixels: See `vmamba.data.images.read_image`.

    Raises:
        ImageError: If it cannot be read, or has a value that is no class.
    """
    values = read_values(path, max_pixels=max_pixels)
    labels = table[values]
    if (labels == _INVALID).any():
        refuse_unknown(path, np.unique(values), table)
    return labels.astype(np.uint8)


def refuse_unknown(path: Path, values: NDArray[np.integer], table: NDArray[np.uint16]) -> None:
    """Check the values of a label map.

    Raises:
        ImageError: If one of them is no class.
    """
    wrong = values[table[values] == _INVALID]
    if wrong.size:
        raise ImageError(f"{path}: has the value {wrong.max()}, {_meaning(table)}")


def check_values(
    folder: Path, counts: NDArray[np.int64], names: Sequence[str], label_values: Sequence[int] | None, *, training: bool
) -> None:
    """Refuse what cannot be meant.

    Args:
        folder: Of the split, for messages.
        counts: Pixels of each value in all label maps of a split, (65536,), values that are no class left out.
        names: The classes.
        label_values: See `label_table`.
        training: More than one class is needed.

    Raises:
        DataError: If there is nothing to learn or to evaluate on, or if the values look like classes counted from 0.
    """
    table = label_table(len(names), label_values)
    present = np.flatnonzero(counts).tolist()
    classes = sorted({int(table[value]) for value in present} - {IGNORE_INDEX})
    what = f"{folder}: the label maps have {_frequencies(counts)}, {_meaning(table)}"
    if not classes:
        raise DataError(f"{what}, so no pixel has a class; {_remedy(present, names)}")
    if training and len(classes) == 1:
        raise DataError(f"{what}, so {names[classes[0]]!r} is the only class; {_remedy(present, names)}")
    from_zero = 0 in present and classes == list(range(len(names) - 1))
    if training and label_values is None and from_zero:
        as_it_is = _option(range(1, len(names) + 1))
        raise DataError(
            f"{what}, so {names[-1]!r} never occurs; {_remedy(present, names)}, "
            f"or if 0 is no class and that one is just missing, {as_it_is}"
        )


def _frequencies(counts: NDArray[np.int64]) -> str:
    total = counts.sum()
    values = np.flatnonzero(counts)
    some = [f"{value} ({counts[value] / total:.1%})" for value in values[:6]]
    return f"the value{'s' if len(values) > 1 else ''} {', '.join(some)}{' …' if len(values) > 6 else ''}"


def _meaning(table: NDArray[np.uint16]) -> str:
    """The values that are classes, in words."""
    values = np.flatnonzero(table < IGNORE_INDEX).tolist()
    run = values == list(range(values[0], values[-1] + 1))
    listed = f"{values[0]} to {values[-1]}" if run else ", ".join(map(str, values))
    none = " and ".join(str(value) for value in NO_CLASS if table[value] == IGNORE_INDEX)
    return f"where classes are {listed}" + (f" and {none} no class" if none else "")


def _remedy(present: Sequence[int], names: Sequence[str]) -> str:
    """Advice, with the values spelt out where they are as many as the classes."""
    for values in (present, [v for v in present if v != 255], [v for v in present if v not in NO_CLASS]):
        if len(values) == len(names):
            pairs = [f"{value} is {name!r}" for value, name in zip(values, names, strict=True)]
            meant = ", ".join(pairs[:4]) + (" …" if len(pairs) > 4 else "")
            return f"if {meant}, add {_option(values)}"
    return f"give the values of the {len(names)} classes by --set label_values=[…], or name yours in classes.txt"


def _option(values: Iterable[int]) -> str:
    """The values as an argument of the command, without spaces, so that a shell takes it as it stands."""
    return f"--set label_values=[{','.join(map(str, values))}]"
