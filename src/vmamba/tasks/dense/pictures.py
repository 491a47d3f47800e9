"""Pictures of what was found: boxes and masks, or the class of every pixel, with names and a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

#: Okabe and Ito's colours, told apart by everyone; more classes than these get hues of their own.
_SAFE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def colour(index: int) -> tuple[float, float, float]:
    """The colour of a class, red, green and blue from 0 to 1."""
    if index < len(_SAFE):
        text = _SAFE[index]
        return int(text[1:3], 16) / 255, int(text[3:5], 16) / 255, int(text[5:7], 16) / 255
    hue = (index * 0.618034) % 1
    return colorsys.hsv_to_rgb(hue, 0.55 + 0.4 * ((index * 7) % 3) / 2, 0.95 - 0.35 * ((index * 5) % 3) / 2)


def draw_detections(
    path: Path,
    image: Image.Image,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    masks: Tensor,
    classes: Sequence[str],
) -> None:
    """Write the image with outlined boxes, tinted masks, names and scores.

    Args:
        path: Of the picture.
        image: What was looked at.
        boxes: (N, 4) in its pixels.
        scores: (N,).
        labels: (N,).
        masks: Bool (N, H, W).
        classes: Names.
    """
    pixels = np.asarray(image, np.float32) / 255
    for label, mask in zip(labels.tolist(), masks.cpu().numpy(), strict=True):
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.asarray(colour(label), np.float32)
    figure, axis, size = _canvas(pixels, image.size, legend=False)
    from matplotlib.patches import Rectangle

    for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
        edge = colour(label)
        axis.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=1.6))
        dark = sum(edge) < 1.6
        axis.text(
            min(max(x1, 0), image.width * 0.97),
            max(y1, 0),
            f"{classes[label]} {score:.0%}",
            fontsize=8,
            color="white" if dark else "black",
            verticalalignment="bottom" if y1 > size * 14 else "top",
            clip_on=True,
            bbox={"facecolor": edge, "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
        )
    _save(figure, path)


def draw_segmentation(path: Path, image: Image.Image, labels: Tensor, classes: Sequence[str]) -> None:
    """Write the image tinted by class, beside a legend of the classes in it, largest first.

    Args:
        path: Of the picture.
        image: What was looked at.
        labels: Integer (H, W).
        classes: Names.
    """
    from matplotlib.patches import Patch

    found, counts = np.unique(labels.numpy(), return_counts=True)
    palette = np.zeros((int(found.max()) + 1, 3), np.float32)
    palette[found] = [colour(int(i)) for i in found]
    pixels = 0.4 * np.asarray(image, np.float32) / 255 + 0.6 * palette[labels.numpy()]
    figure, axis, _ = _canvas(pixels, image.size, legend=True)
    order = found[np.argsort(-counts)][:24]
    shares = dict(zip(found.tolist(), (counts / counts.sum()).tolist(), strict=True))
    handles = [Patch(color=colour(int(i)), label=f"{classes[int(i)]}  {shares[int(i)]:.0%}") for i in order]
    axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    _save(figure, path)


def _canvas(pixels: NDArray[np.floating], size: tuple[int, int], legend: bool):  # type: ignore[no-untyped-def]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'vmamba[dense]'") from None
    width, height = size
    side = 8 / max(width, height)  # inches per pixel
    figure = Figure(figsize=(width * side + (2.2 if legend else 0), height * side), dpi=120, layout="constrained")
    axis = figure.add_subplot()
    axis.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
    axis.set_axis_off()
    return figure, axis, 1 / (72 * side)


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
