"""Masks in COCO's format: polygons, and run lengths plain or compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmamba.errors import MissingPackageError


def decode_mask(segmentation: Any, height: int, width: int) -> Tensor:
    """Polygons, or run lengths plain or compressed → uint8 (height, width) of zeros and ones.

    Only for what `polygon_fault` or `run_length_fault` accepts.
    """
    return torch.from_numpy(np.ascontiguousarray(_codec().decode(encode(segmentation, height, width))))


def encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons, or run lengths plain or compressed → compressed run lengths."""
    code = _codec()
    runs: dict[str, Any]
    if not isinstance(segmentation, dict):
        runs = code.merge(code.frPyObjects([np.asarray(polygon).tolist() for polygon in segmentation], height, width))
    elif isinstance(segmentation["counts"], list):
        runs = code.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return runs


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """Bool or uint8 (height, width) → compressed run lengths, fit for JSON."""
    runs = _codec().encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    counts = runs["counts"]
    return {"size": list(runs["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def area(segmentation: Any, height: int, width: int) -> float:
    """Pixels of a mask."""
    return float(_codec().area(encode(segmentation, height, width)))


def is_empty(segmentation: Any, height: int, width: int) -> bool:
    """True for a mask without a pixel: a polygon so small or thin that it lies between the centres of pixels."""
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return not (sum(counts[1::2]) if isinstance(counts, list) else area(segmentation, height, width))
    wide = any(_is_wide(polygon, height, width) for polygon in segmentation)
    return not wide and not area(segmentation, height, width)


def _is_wide(polygon: NDArray[np.float64], height: int, width: int) -> bool:
    """True for a polygon inside the image that holds the centre of a pixel for certain, without drawing it.

    In a simple polygon lies a circle whose radius is at least the area over the perimeter.
    """
    if polygon.min() < 0 or polygon[::2].max() > width or polygon[1::2].max() > height:
        return False
    points = polygon.view(np.complex128)
    following = np.concatenate([points[1:], points[:1]])
    return bool(abs(np.vdot(points, following).imag) / 2 > np.abs(following - points).sum())


def polygon_fault(polygon: NDArray[np.float64], height: int, width: int) -> str | None:
    """A reason for which x1, y1, x2, y2 … are no polygon in an image of this size, or None."""
    count = len(polygon)
    if count % 2:
        return f"has {count} numbers; a polygon is x1, y1, x2, y2 …"
    if count < 6:
        box = " (a box [x, y, width, height] belongs into bbox)" if count == 4 else ""
        return f"has {count} numbers; a polygon needs three points, 6 numbers{box}"
    x, y = polygon[::2], polygon[1::2]
    return far_outside(x.min(), y.min(), x.max(), y.max(), height, width)


def far_outside(left: float, top: float, right: float, bottom: float, height: int, width: int) -> str | None:
    """A description of a box that ends more than its image's size outside of it, or None.

    To draw a line as far as that takes memory without end, and no annotation means it.
    """
    for low, high, size, axis in ((left, right, width, "x"), (top, bottom, height, "y")):
        if low < -size or high > 2 * size:
            return f"reaches to {axis} = {low if low < -size else high:g}, far outside the image of {width}×{height}"
    return None


def run_length_fault(size: Sequence[int], counts: str | list[int], height: int, width: int) -> str | None:
    """A reason for which these are no run lengths of a mask in an image of this size, or None."""
    if list(size) != [height, width]:
        swapped = "; height comes first" if list(size) == [width, height] else ""
        return f"has the size {list(size)}, its image [{height}, {width}]{swapped}"
    runs = _uncompressed(counts) if isinstance(counts, str) else np.array(counts, dtype=np.float64)
    if runs is None or (runs < 0).any():
        return "has run lengths that cannot be decoded"
    if runs.sum() != height * width:
        return f"has runs of {runs.sum():,.0f} pixels together, its image has {height * width:,}"
    return None


def _uncompressed(text: str) -> NDArray[np.int64] | None:
    """Run lengths of COCO's compressed form, None where it is broken.

    Each number has five bits a character, the lowest first; bit 5 says that more follow, bit 4 of the last one is the
    sign. From the fourth on, numbers are differences to the one before the last.
    """
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits, more than any image needs
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, np.left_shift(1, 5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _codec() -> Any:
    """Run lengths in C, with the functions of ``pycocotools.mask``."""
    try:
        from faster_coco_eval import mask
    except ImportError:
        raise MissingPackageError("faster-coco-eval", "dense") from None
    return mask
