"""Scene parsing data in ADE20K's layout: images and label maps in folders of the same names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from vmamba.data.coco import AnnotationError
from vmamba.data.images import read_image
from vmamba.data.summary import SplitSummary

#: ADE20K's 150 classes; a label map holds index + 1, and 0 where there is none of them.
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat",
    "bar", "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle",
    "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake",
    "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip

#: Label of pixels that belong to no class, after reading.
IGNORED = 255
_SPLITS = {"train": "training", "val": "validation"}


class SceneParsing:
    """``images/SPLIT/*.jpg`` with ``annotations/SPLIT/*.png``; ``samples[i]`` gives what `transform` makes of one.

    Attributes:
        classes: ADE20K's, or those in ``classes.txt``, one per line, where the data have one.
        names: Of the images, without extension.

    Args:
        root: Folder with ``images`` and ``annotations``.
        split: ``"train"`` (``training``) or ``"val"`` (``validation``).
        transform: From ``{"image", "labels", "file", "size"}`` with tv_tensors, labels from 0 with `IGNORED` where
            there is none; None to return that.

    Raises:
        AnnotationError: If there are no such folders, or images without label maps.
    """

    def __init__(self, root: str | Path, split: str, transform: Callable[[dict[str, Any]], Any] | None = None) -> None:
        root = Path(root)
        images, labels = root / "images" / _SPLITS[split], root / "annotations" / _SPLITS[split]
        for folder in (images, labels):
            if not folder.is_dir():
                raise AnnotationError(f"{root}: no folder {folder.relative_to(root)}; ADE20K's layout has it")
        self.transform = transform
        self.classes = class_list(root)
        self._images = sorted(p for p in images.iterdir() if p.is_file() and not p.name.startswith("."))
        self._labels = [labels / f"{path.stem}.png" for path in self._images]
        if not self._images:
            raise AnnotationError(f"{images}: holds no images")
        there = {path.name for path in labels.iterdir()}
        missing = [path.name for path in self._labels if path.name not in there]
        if missing:
            raise AnnotationError(
                f"{labels}: {len(missing)} of {len(self._images)} images have no label map, the first: {missing[0]}"
            )
        self.names = [path.stem for path in self._images]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        image = read_image(self._images[index])
        labels = read_labels(self._labels[index], len(self.classes))
        if labels.shape != (image.height, image.width):
            raise AnnotationError(
                f"{self._labels[index]}: has {labels.shape[1]}×{labels.shape[0]} pixels, "
                f"its image {image.width}×{image.height}"
            )
        sample = {
            "image": tv_tensors.Image(image),
            "labels": tv_tensors.Mask(torch.from_numpy(labels)),
            "file": self._images[index].name,
            "size": labels.shape,
        }
        return sample if self.transform is None else self.transform(sample)

    def summary(self, split: str) -> SplitSummary:
        """Images of the split."""
        return SplitSummary(split, str(self._images[0].parent), len(self))


def class_list(root: Path) -> tuple[str, ...]:
    """The lines of ``classes.txt`` in `root`, else ADE20K's classes."""
    path = root / "classes.txt"
    if not path.is_file():
        return CLASSES
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not 2 <= len(names) <= IGNORED:
        raise AnnotationError(f"{path}: names {len(names)} classes, one per line; from 2 to {IGNORED} are possible")
    return names


def read_labels(path: Path, classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A label map, with 0 read as `IGNORED` and the classes counted from 0.

    Raises:
        AnnotationError: If it cannot be read, is no single-channel image of 8 bits, or has a value above `classes`.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, values = image.mode, np.array(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise AnnotationError(f"{path}: cannot read the label map: {' '.join(str(error).split())}") from None
    if mode not in ("L", "P") or values.ndim != 2:
        raise AnnotationError(f"{path}: a label map has one channel of 8 bits (mode L or P), this is mode {mode}")
    wrong = values[(values > classes) & (values != IGNORED)]
    if wrong.size:
        raise AnnotationError(f"{path}: has the value {wrong.max()}, but there are {classes} classes (and 0 for none)")
    labels = values.astype(np.uint8)
    labels[labels == 0] = IGNORED
    labels[labels != IGNORED] -= 1
    return labels
