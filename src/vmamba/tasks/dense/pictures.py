"""Pictures of results: boxes and masks, or the class of every pixel, with names and a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vmamba.plots import figure
from vmamba.terminal import printable

#: Okabe and Ito's colours, told apart by everyone; more classes than these get hues of their own.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
#: Long side of a picture in inches, pixels per inch, and the longest side of an image that is drawn as it is.
_INCHES, _DPI, _LONGEST = 8.0, 120, 1920
#: Short side of a picture in inches, for images of extreme shape.
_SHORTEST = 0.5
#: Fraction of an image above which a class is its background.
_BACKGROUND = 0.5
#: Classes in a legend.
_LEGEND = 24


def colour(index: int) -> tuple[float, float, float]:
    """The colour of a class, red, green and blue from 0 to 1."""
    if index < len(_COLOURS):
        text = _COLOURS[index]
        return int(text[1:3], 16) / 255, int(text[3:5], 16) / 255, int(text[5:7], 16) / 255
    hue = (index * 0.618034) % 1
    return colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * ((index * 7) % 3) / 2, 0.95 - 0.35 * ((index * 5) % 3) / 2)


class ScoredBoxes(Protocol):
    """Boxes (N, 4) as x1, y1, x2, y2, scores (N,) and labels (N,)."""

    @property
    def boxes(self) -> Tensor: ...

    @property
    def scores(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


def draw_detections(
    path: Path,
    image: Image.Image,
    detections: ScoredBoxes,
    masks: Iterable[Tensor],
    classes: Sequence[str],
) -> None:
    """Write the image with outlined boxes, tinted masks, names and scores.

    Args:
        path: Of the picture.
        image: The image itself.
        detections: N boxes in its pixels.
        masks: N times bool (H, W).
        classes: Names.
    """
    from matplotlib.patches import Rectangle

    small = _reduced(image)
    pixels = np.asarray(small, np.float32) / 255
    for label, mask in zip(detections.labels.tolist(), masks, strict=True):
        inside = np.asarray(Image.fromarray(mask.cpu().numpy()).resize(small.size, Image.Resampling.NEAREST))
        pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.asarray(colour(label), np.float32)
    with _canvas(path, [pixels], image.size) as (axis,):
        text_height = 14 * max(image.size) / (72 * _INCHES)  # in pixels of the image
        numbers = (detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist())
        for (x1, y1, x2, y2), score, label in zip(*numbers, strict=True):
            edge = colour(label)
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=1.6))
            axis.text(
                min(max(x1, 0), image.width * 0.97),
                max(y1, 0),
                f"{printable(classes[label])} {score:.0%}",
                fontsize=8,
                color="white" if sum(edge) < 1.6 else "black",
                verticalalignment="bottom" if y1 > text_height else "top",
                clip_on=True,
                bbox={"facecolor": edge, "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
            )


def draw_segmentation(path: Path, image: Image.Image, labels: Tensor, classes: Sequence[str]) -> None:
    """Write the image, the same tinted by class, and a legend of the classes in it, largest first.

    A class that covers more than half of the image is left untinted: what stands before it shows better.

    Args:
        path: Of the picture.
        image: The image itself.
        labels: uint8 (H, W).
        classes: Names.
    """
    from matplotlib.patches import Patch

    small = _reduced(image)
    shown = np.asarray(Image.fromarray(labels.numpy()).resize(small.size, Image.Resampling.NEAREST))
    palette = np.array([colour(i) for i in range(256)], np.float32)
    plain = np.asarray(small, np.float32) / 255
    fractions = class_fractions(labels)
    background = fractions[0][0] if fractions[0][1] > _BACKGROUND else None
    tinted = 0.4 * plain + 0.6 * palette[shown]
    tinted[shown == background] = plain[shown == background]
    legend = [
        Patch(
            facecolor="none" if index == background else colour(index),
            edgecolor="#999999" if index == background else colour(index),
            label=f"{printable(classes[index])}  {fraction:.0%}",
        )
        for index, fraction in fractions[:_LEGEND]
    ]
    with _canvas(path, [plain, tinted], image.size, len(legend)) as axes:
        axes[-1].legend(handles=legend, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)


def class_fractions(labels: Tensor) -> list[tuple[int, float]]:
    """The classes in a label map, uint8 (H, W), each with its fraction of the area, largest first."""
    # Row by row, for a count of the whole would copy the map to eight bytes a pixel.
    counts = np.zeros(256, np.int64)
    for row in labels.numpy():
        counts += np.bincount(row, minlength=256)
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda i: -counts[i])
    return [(i, float(counts[i]) / labels.numel()) for i in present]


def _reduced(image: Image.Image) -> Image.Image:
    """The image, or a smaller copy of a large one, whose details no picture could show."""
    factor = min(1.0, _LONGEST / max(image.size))
    return (
        image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
        if factor < 1
        else image
    )


@contextmanager
def _canvas(
    path: Path, pictures: Sequence[NDArray[np.floating]], size: tuple[int, int], legend: int = 0
) -> Iterator[Any]:
    """Axes beside each other that show images in the pixels of the original.

    Args:
        path: Of the picture.
        pictures: Float (h, w, 3) from 0 to 1.
        size: Width and height of the original.
        legend: Lines of the legend beside them.
    """
    width, height = (max(_INCHES * length / max(size), _SHORTEST) for length in size)
    room = (2.2, 0.25 * legend + 0.1) if legend else (0.0, 0.0)
    page_size = (width * len(pictures) + room[0], max(height, room[1]))
    with figure(path, size=page_size, extra="dense", dpi=_DPI) as page:
        axes = page.subplots(1, len(pictures), squeeze=False)[0]
        stretched = _INCHES * min(size) / max(size) < _SHORTEST
        for axis, pixels in zip(axes, pictures, strict=True):
            axis.imshow(
                np.clip(pixels, 0, 1),
                interpolation="nearest",
                extent=(0, size[0], size[1], 0),
                aspect="auto" if stretched else "equal",
            )
            axis.set_axis_off()
        yield axes
