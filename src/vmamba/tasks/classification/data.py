"""The splits of a classification data set in any format, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from vmamba.data.hugging_face import HuggingFaceImages
from vmamba.data.image_dataset import hold_out, read_file
from vmamba.data.image_folder import ImageFolder, LabelledFiles, find_split
from vmamba.data.shard_files import find_shards
from vmamba.data.shards import read_shards
from vmamba.data.summary import DataSummary, SplitSummary
from vmamba.data.verify import unreadable
from vmamba.errors import DataError


class ClassificationData:
    """The files of each split and the names of the classes. Nothing is read before it is asked for.

    Args:
        root: Folder, name or address of the data.
        format: ``"folder"``, ``"huggingface"`` or ``"shards"``.
        train_split: Name of the training split (Hugging Face, shards).
        val_split: Name of the validation split (Hugging Face, shards).
        num_classes: Classes; None to count the class names.
        holdout: Fraction of the training images to validate on instead of a validation split.
        seed: Of the choice of these.
        max_pixels: See `vmamba.data.images.read_image`.
    """

    def __init__(
        self,
        root: str,
        *,
        format: str,
        train_split: str,
        val_split: str,
        num_classes: int | None,
        holdout: float,
        seed: int,
        max_pixels: int | None = None,
    ) -> None:
        self.root, self.format, self.holdout, self.seed = root, format, holdout, seed
        self.splits = {"train": train_split, "val": val_split}
        self._num_classes, self._max_pixels = num_classes, max_pixels

    @cached_property
    def train(self) -> LabelledFiles:
        """The training images, those to hold out included.

        Raises:
            DataError: If they cannot be used.
        """
        if self.format == "huggingface":
            return HuggingFaceImages(self.root, self.splits["train"])
        path = find_split(self.root, "train")
        if path is None:
            raise DataError(f"{self.root}: has no training split; put class folders into {self.root}/train")
        return ImageFolder(path)

    @cached_property
    def val(self) -> LabelledFiles:
        """The validation images; with `holdout`, the training images, of which `val_indices` are for validation.

        Raises:
            DataError: If they cannot be used.
        """
        if self.holdout:
            return self.train
        if self.format == "huggingface":
            return HuggingFaceImages(self.root, self.splits["val"])
        path, train = find_split(self.root, "val"), find_split(self.root, "train")
        if path is None and train is None:
            path = self.root  # class folders without a split above them
        if path is None:
            raise DataError(
                f"{self.root}: has no validation split; put images into {self.root}/val, "
                "or hold some of the training images out: --set holdout=0.2"
            )
        return ImageFolder(path, self.train.classes if train is not None else None)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes: of the training split, where there is one."""
        if self.format == "shards":
            known: dict[int, str] = {}
        else:
            alone = self.format == "folder" and find_split(self.root, "train") is None
            known = {number: name for name, number in (self.val if alone else self.train).classes.items()}
        count = self._num_classes or len(known)
        if count < len(known):
            raise DataError(f"{self.root}: has {len(known)} classes, but num_classes is {count}; leave it out")
        return [known.get(i, f"class {i}") for i in range(count)]

    @property
    def train_indices(self) -> Sequence[int]:
        """Indices into `train` of the images to train on."""
        return self._held_out[0] if self.holdout else range(len(self.train.labels))

    @property
    def val_indices(self) -> Sequence[int]:
        """Indices into `val` of the images to validate on."""
        return self._held_out[1] if self.holdout else range(len(self.val.labels))

    @cached_property
    def _held_out(self) -> tuple[list[int], list[int]]:
        return hold_out(self.train.labels, self.holdout, self.seed)

    def summary(self, *, verify: bool = False) -> DataSummary:
        """Images of each class in each split, and everything remarkable.

        Args:
            verify: Read every image, too.

        Raises:
            DataError: If the data cannot be trained on.
        """
        if self.format == "shards":
            parts = [self._shards(split, verify) for split in ("train", "val")]
            return DataSummary("classification", self.root, parts)
        parts = [
            self._part("train", self.train, self.train_indices, verify),
            self._part("val", self.val, self.val_indices, verify),
        ]
        train, val = parts
        present = [name for name, count in train.counts.items() if count]
        if len(present) < 2:
            raise DataError(
                f"{train.path}: there is nothing to tell apart, all images are of the class {present[0]!r}; "
                "put one folder per class directly into the training split"
            )
        if not val.images:
            raise DataError(f"{self.root}: no image is left to validate on, for each class has only one; add images")
        notes = []
        if self.holdout:
            single = [name for name in present if train.counts[name] == 1 and not val.counts[name]]
            notes += [f"not held out, since there is only one image: {', '.join(single)}"] if single else []
            unused = find_split(self.root, "val") if self.format == "folder" else None
            notes += [f"{unused} is not used, since holdout is {self.holdout}"] if unused else []
        return DataSummary("classification", self.root, parts, notes)

    def _part(self, split: str, files: LabelledFiles, indices: Sequence[int], verify: bool) -> SplitSummary:
        numbers = np.bincount(files.labels[list(indices)], minlength=len(self.classes)).tolist()
        if len(numbers) > len(self.classes):
            raise DataError(f"{self.root}: a label of the split {split} is {len(numbers) - 1}, beyond the last class")
        counts = dict(zip(self.classes, numbers, strict=True))
        left_out = {} if self.holdout and split == "val" else dict(files.left_out)
        broken = unreadable(len(indices), lambda i: read_file(files, indices[i], self._max_pixels)) if verify else []
        return SplitSummary(split, files.path, len(indices), counts, left_out=left_out, unreadable=broken)

    def _shards(self, split: str, verify: bool) -> SplitSummary:
        shards = find_shards(self.root, self.splits[split])
        counts = {name: shards.counts.get(i, 0) for i, name in enumerate(self.classes)} if shards.counts else {}
        unknown = shards.samples - sum(counts.values()) if shards.counts else 0
        left_out = {"samples whose .cls is no class number below num_classes": unknown}
        notes, broken = [f"{len(shards.urls)} shards"], list[str]()
        if verify:
            good, broken = read_shards(shards, len(self.classes), self._max_pixels)
            if good + len(broken) != shards.samples:
                notes.append(f"{good:,} samples can be used, {shards.samples:,} were expected")
        return SplitSummary(split, self.root, shards.samples, counts, "images", left_out, notes, broken)
