"""Pictures of coloured shapes, written to disk in COCO's and in ADE20K's format: data to try and to test with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vmamba.data.masks import encode_mask
from vmamba.errors import OptionError

#: What is drawn. Colours are drawn at random, so that only the form tells the classes apart.
CLASSES = ("disc", "square", "triangle", "star")
BACKGROUND = "background"
#: Annotation ids of the classes have gaps, as COCO's do.
CATEGORY_IDS = (2, 3, 7, 11)

_CORNERS = {"square": 4, "triangle": 3, "star": 10}


@dataclass(frozen=True)
class Shape:
    """One thing in a picture.

    Attributes:
        label: Index into `CLASSES`.
        mask: Its visible pixels, bool (H, W).
        polygon: Its outline (N, 2) in pixels, where nothing covers it.
        crowd: Many tiny discs annotated as one.
    """

    label: int
    mask: NDArray[np.bool_]
    polygon: NDArray[np.float64] | None
    crowd: bool = False


def write_shapes(
    root: str | Path, *, train: int = 400, val: int = 100, image_size: int = 128, seed: int = 0
) -> list[Path]:
    """Write the data set to ``ROOT/coco`` and ``ROOT/ade20k``.

    Height and width are between 0.8 and 1.2 of `image_size`; pictures have a noisy background, and one to five shapes
    that may cover each other; one in ten holds a crowd. The scene parsing labels are the four classes and the
    background, and a seam around each shape has no label.

    Args:
        root: Folder, created if need be.
        train: Training pictures.
        val: Validation pictures.
        image_size: Typical height and width in pixels, at least 32.
        seed: Of everything.

    Returns:
        The two folders.

    Raises:
        OptionError: If `image_size` is below 32 or a number of pictures below 1.
    """
    if image_size < 32 or train < 1 or val < 1:
        raise OptionError(f"shapes need 32 pixels and one picture per split, got {image_size}, {train} and {val}")
    root = Path(root)
    coco, ade = root / "coco", root / "ade20k"
    for split, number, name, offset in (("train", train, "training", 0), ("val", val, "validation", 1)):
        for folder in (coco / split, coco / "annotations", ade / "images" / name, ade / "annotations" / name):
            folder.mkdir(parents=True, exist_ok=True)
        content = _Content()
        for i, (picture, shapes) in enumerate(pictures(number, image_size, seed=2 * seed + offset)):
            file = f"{i:06d}.jpg"
            picture.save(coco / split / file, quality=92)
            picture.save(ade / "images" / name / file, quality=92)
            Image.fromarray(label_map(shapes, picture.size)).save(ade / "annotations" / name / f"{i:06d}.png")
            content.add(file, picture.size, shapes)
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(content.as_dict()))
    (ade / "classes.txt").write_text("\n".join((BACKGROUND, *CLASSES)) + "\n")
    return [coco, ade]


def pictures(number: int, image_size: int, *, seed: int) -> Iterator[tuple[Image.Image, list[Shape]]]:
    """Pictures and what is in them; picture i depends on nothing but (seed, i, image_size)."""
    for i in range(number):
        rng = np.random.default_rng([seed, i])
        width, height = (int(v) for v in rng.integers(round(0.8 * image_size), round(1.2 * image_size) + 1, 2))
        yield _picture(rng, width, height, image_size)


def single_shapes(number: int, image_size: int, *, seed: int) -> Iterator[tuple[Image.Image, str]]:
    """Square pictures of one bright shape on a dark background, and its class; picture i depends on (seed, i) alone."""
    for i in range(number):
        rng = np.random.default_rng([seed, i])
        label = CLASSES[i % len(CLASSES)]
        canvas = 0.45 * _background(rng, image_size, image_size)
        radius = rng.uniform(0.2, 0.4) * image_size
        centre = rng.uniform(0.8 * radius, image_size - 0.8 * radius, 2)
        mask = _filled([_outline(rng, label, centre, radius)], image_size, image_size)
        canvas[mask] = rng.uniform(150, 255, 3) + rng.normal(0, 6, (int(mask.sum()), 3))
        yield Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)), label


def _picture(rng: np.random.Generator, width: int, height: int, image_size: int) -> tuple[Image.Image, list[Shape]]:
    canvas = _background(rng, width, height)
    covered = np.zeros((height, width), bool)
    outlines: list[tuple[int, NDArray[np.float64], NDArray[np.bool_]]] = []
    for _ in range(int(rng.integers(1, 6))):
        label = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(0.09, 0.22) * image_size
        centre = rng.uniform((0.1 * width, 0.1 * height), (0.9 * width, 0.9 * height))
        outline = _outline(rng, CLASSES[label], centre, radius)
        mask = _filled([outline], width, height)
        if mask.sum() < 40 or any(
            (mask & other).sum() > 0.5 * min(mask.sum(), other.sum()) for _, _, other in outlines
        ):
            continue
        colour = _distinct(rng, canvas[mask].mean(axis=0))
        canvas[mask] = colour + rng.normal(0, 6, (int(mask.sum()), 3))
        outlines.append((label, outline, mask))
    shapes = []
    for i, (label, outline, mask) in enumerate(outlines):
        above = np.logical_or.reduce([m for _, _, m in outlines[i + 1 :]], axis=0) if outlines[i + 1 :] else covered
        visible = mask & ~above
        whole = not (mask & above).any() and (outline >= 0).all() and (outline <= (width, height)).all()
        if visible.sum() >= 20:
            shapes.append(Shape(label, visible, outline if whole else None))
    if rng.random() < 0.1:
        taken = np.logical_or.reduce([s.mask for s in shapes], axis=0) if shapes else covered
        crowd = _crowd(rng, width, height, image_size) & ~taken
        if crowd.sum() >= 20:
            canvas[crowd] = _distinct(rng, canvas[crowd].mean(axis=0))
            shapes.append(Shape(0, crowd, None, crowd=True))
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)), shapes


def _background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """Two colours that run into each other, and noise."""
    colours = rng.uniform(40, 215, (2, 3))
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = np.cos(direction) * x / width + np.sin(direction) * y / height
    weight = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    return colours[0] + weight[..., None] * (colours[1] - colours[0]) + rng.normal(0, 8, (height, width, 3))


def _outline(rng: np.random.Generator, name: str, centre: Any, radius: float) -> NDArray[np.float64]:
    corners = _CORNERS.get(name, 40)
    angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    reach = np.where(np.arange(corners) % 2, 0.45, 1.0) * radius if name == "star" else np.full(corners, radius)
    return centre + np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)


def _filled(outlines: Iterable[NDArray[np.float64]], width: int, height: int) -> NDArray[np.bool_]:
    mask = Image.new("1", (width, height))
    for outline in outlines:
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in outline], fill=1)
    return np.asarray(mask, bool)


def _distinct(rng: np.random.Generator, from_what: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour that differs visibly from another."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - from_what).max() > 70:
            return colour


def _crowd(rng: np.random.Generator, width: int, height: int, image_size: int) -> NDArray[np.bool_]:
    middle = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    centres = middle + rng.normal(0, 0.07 * image_size, (12, 2))
    return _filled([_outline(rng, "disc", centre, 0.02 * image_size) for centre in centres], width, height)


def label_map(shapes: Iterable[Shape], size: tuple[int, int]) -> NDArray[np.uint8]:
    """ADE20K's kind of labels, uint8 (H, W): 1 the background, from 2 on the classes, 0 on the seam and in crowds.

    Args:
        shapes: What is in the picture.
        size: Width and height.
    """
    labels = np.ones(size[::-1], np.uint8)
    for shape in shapes:
        labels[shape.mask] = 0 if shape.crowd else shape.label + 2
    seam = np.zeros(labels.shape, bool)
    seam[1:] |= labels[1:] != labels[:-1]
    seam[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    labels[seam] = 0
    return labels


class _Content:
    """The annotation file, as it grows."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file: str, size: tuple[int, int], shapes: Iterable[Shape]) -> None:
        image_id = 1 + 3 * len(self.images)
        self.images.append({"id": image_id, "file_name": file, "width": size[0], "height": size[1]})
        for shape in shapes:
            rows, columns = np.nonzero(shape.mask)
            left, top = int(columns.min()), int(rows.min())
            box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
            segmentation: Any = encode_mask(torch.from_numpy(shape.mask))
            if shape.polygon is not None:
                segmentation = [[round(float(v), 2) for v in shape.polygon.flatten()]]
            self.annotations.append(
                {
                    "id": 1 + len(self.annotations),
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[shape.label],
                    "bbox": box,
                    "area": int(shape.mask.sum()),
                    "segmentation": segmentation,
                    "iscrowd": int(shape.crowd),
                }
            )

    def as_dict(self) -> dict[str, Any]:
        categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}
