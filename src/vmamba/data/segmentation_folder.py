"""Semantic segmentation data in ADE20K's layout: images, and label maps of the same names, in two trees of folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from vmamba.data.ade20k import CLASSES
from vmamba.data.class_names import read_class_list
from vmamba.data.images import image_endings, read_image_of_size
from vmamba.data.label_maps import (
    IGNORE_INDEX,
    NO_CLASS,
    VALUES,
    check_values,
    label_table,
    read_labels,
    read_values,
    refuse_unknown,
)
from vmamba.data.summary import SplitSummary
from vmamba.data.verify import read_all, unreadable
from vmamba.data.walk import by_ending, walk
from vmamba.errors import DataError, ImageError

_SPLITS = {"train": ("training", "train"), "val": ("validation", "val", "valid")}
#: Label maps of a split that are looked at before training; of more, so many are taken, evenly spread.
SAMPLE = 4096


class SegmentationFolder:
    """``images/SPLIT/….jpg`` with ``annotations/SPLIT/….png``; ``samples[i]`` gives what `transform` makes of one.

    Folders within the splits are searched, too; an image and its label map lie in folders of the same names.

    Attributes:
        classes: Those in ``classes.txt``, one per line, where the data have one, else ADE20K's.
        names: Of the images, without ending.
        left_out: Reason → number of files that are not used.

    Args:
        root: Folder with ``images`` and ``annotations``.
        split: ``"train"`` (``training``) or ``"val"`` (``validation``).
        transform: From ``{"image", "labels", "file", "size"}`` with tv_tensors, labels from 0 with `IGNORE_INDEX` where
            there is none; None to return that.
        label_values: The value in the label maps of each class; None for 1, 2, 3 …, and 0 and 255 for none.
        max_pixels: See `vmamba.data.images.read_image`.

    Raises:
        DataError: If there are no such folders, or images without label maps.
        OptionError: For impossible `label_values`.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        *,
        label_values: Sequence[int] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        root, self.max_pixels = Path(root), max_pixels
        self.split, self.transform, self.label_values = split, transform, label_values
        self.folder, self.labels_folder = _find(root, "images", split), _find(root, "annotations", split)
        self.classes = class_list(root)
        self._table = label_table(len(self.classes), label_values)
        self.left_out: Counter[str] = Counter()
        images, maps = _by_stem(self.folder, self.left_out), _by_stem(self.labels_folder, self.left_out)
        if not images:
            raise DataError(f"{self.folder}: holds no images")
        missing = [name for name in images if name not in maps]
        if missing:
            raise DataError(
                f"{self.labels_folder}: {len(missing):,} of {len(images):,} images have no label map of their name, "
                f"{images[missing[0]]} first"
            )
        if len(maps) > len(images):
            self.left_out["label maps without an image"] = len(maps) - len(images)
        self.names = list(images)
        self._images = [self.folder / name for name in images.values()]
        self._maps = [self.labels_folder / maps[name] for name in images]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        labels = read_labels(self._maps[index], self._table, max_pixels=self.max_pixels)
        height, width = labels.shape
        image = read_image_of_size(self._images[index], width, height, max_pixels=self.max_pixels)
        sample = {
            "image": tv_tensors.Image(image),
            "labels": tv_tensors.Mask(torch.from_numpy(labels)),
            "file": self._images[index].name,
            "size": labels.shape,
        }
        return sample if self.transform is None else self.transform(sample)

    def summary(self, *, verify: bool = False) -> SplitSummary:
        """Pixels of each class, from the values of the label maps.

        Args:
            verify: Look at all label maps, not at a sample of them, and read every image.

        Raises:
            DataError: If the values cannot be meant, see `vmamba.data.label_maps.check_values`.
        """
        total = len(self)
        looked_at = range(total) if verify else np.unique(np.linspace(0, total - 1, min(total, SAMPLE)).astype(int))
        results = read_all(looked_at, len(looked_at), self._count_values, "reading label maps")
        broken = [result for result in results if isinstance(result, str)]
        if len(broken) > len(results) / 2:
            raise DataError(
                f"{self.labels_folder}: {len(broken):,} of {len(results):,} label maps cannot be used: {broken[0]}"
            )
        counts = np.zeros(VALUES, np.int64)
        for result in results:
            if not isinstance(result, str):
                counts[result[0]] += result[1]
        check_values(self.labels_folder, counts, self.classes, self.label_values, training=self.split == "train")
        pixels = np.bincount(self._table, weights=counts, minlength=IGNORE_INDEX + 1).astype(int).tolist()
        names = dict(zip(self.classes, pixels, strict=False))
        notes = [] if len(looked_at) == total else [f"{len(looked_at):,} of {total:,} label maps were looked at"]
        for value in NO_CLASS:
            if counts[value] and self._table[value] == IGNORE_INDEX:
                notes.append(f"{counts[value] / counts.sum():.2%} of the pixels have no class (value {value})")
        if verify:
            broken = unreadable(total, self._read)
        return SplitSummary(self.split, str(self.folder), total, names, "pixels", dict(self.left_out), notes, broken)

    def _count_values(self, index: int) -> tuple[NDArray[np.intp], NDArray[np.int64]] | str:
        """Values of a label map and their pixels, or what is wrong with it."""
        try:
            counts = np.bincount(read_values(self._maps[index], max_pixels=self.max_pixels).reshape(-1))
            values = np.flatnonzero(counts)
            refuse_unknown(self._maps[index], values, self._table)
        except ImageError as error:
            return str(error)
        return values, counts[values]

    def _read(self, index: int) -> None:
        self[index]


def class_list(root: Path) -> tuple[str, ...]:
    """The lines of ``classes.txt`` in `root`, else ADE20K's classes.

    Raises:
        DataError: If it cannot be read, or names less than 2 or more than 254.
    """
    path = root / "classes.txt"
    if not path.exists():
        return CLASSES
    names = read_class_list(path)
    if not 2 <= len(names) < IGNORE_INDEX:
        raise DataError(f"{path}: names {len(names)} classes, one per line; from 2 to {IGNORE_INDEX - 1} are possible")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path}: names the class {twice!r} twice")
    return names


def _find(root: Path, part: str, split: str) -> Path:
    folders = [root / part / name for name in _SPLITS[split]]
    existing = next((folder for folder in folders if folder.is_dir()), None)
    if existing is None:
        raise DataError(f"{root}: no folder {part}/{_SPLITS[split][0]}; ADE20K's layout has it")
    return existing


def _by_stem(folder: Path, left_out: Counter[str]) -> dict[str, str]:
    """Images below a folder: name without ending → name."""
    files: dict[str, str] = {}
    for name in by_ending(walk(folder, left_out), image_endings(), left_out):
        stem = os.path.splitext(name)[0]
        if stem in files:
            raise DataError(f"{folder}: {files[stem]} and {name} would share a label map; rename or remove one")
        files[stem] = name
    return files
