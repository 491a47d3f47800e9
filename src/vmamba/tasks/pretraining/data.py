"""The splits of images without labels, in any format, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from vmamba.data.hugging_face import HuggingFaceImages
from vmamba.data.image_dataset import hold_out, read_file
from vmamba.data.image_folder import ImageFolder, LabelledFiles, find_split
from vmamba.data.image_tree import UNLABELLED, ImageTree, in_folder
from vmamba.data.shard_files import Shards, find_shards
from vmamba.data.summary import DataSummary, SplitSummary
from vmamba.data.verify import unreadable
from vmamba.errors import DataError

#: Fraction of the training images that is held out where there is no validation split.
HOLDOUT = 0.05


class UnlabelledData:
    """The files of each split. Nothing is read before it is asked for.

    Args:
        root: Folder, tar file, name or address of the data.
        format: ``"folder"``, ``"huggingface"`` or ``"shards"``.
        train_split: Name of the training split (Hugging Face, shards).
        val_split: Name of the validation split (Hugging Face, shards).
        holdout: Fraction of the training images to validate on; None for the validation split where there is one.
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
        holdout: float | None,
        seed: int,
        max_pixels: int | None = None,
    ) -> None:
        self.root, self.format, self.holdout, self.seed = root, format, holdout, seed
        self.splits = {"train": train_split, "val": val_split}
        self._max_pixels = max_pixels

    @cached_property
    def train(self) -> LabelledFiles:
        """The training images, those to hold out included.

        Raises:
            DataError: If there are none.
        """
        if self.format == "huggingface":
            return HuggingFaceImages(self.root, self.splits["train"], labelled=False)
        tree = ImageTree(self._split("train") or self.root)
        if not len(tree):
            raise DataError(f"{tree.path}: holds no images; name a folder with .jpg, .png or other images in it")
        return tree

    @cached_property
    def val(self) -> LabelledFiles:
        """The validation images; where they are held out, the training images.

        Raises:
            DataError: If they cannot be used.
        """
        if self._held_out is not None:
            return self.train
        if self.format == "huggingface":
            return HuggingFaceImages(self.root, self.splits["val"], labelled=False)
        tree = ImageTree(str(self._split("val")))
        return ImageFolder(tree.path) if len(tree) and tree.count(in_folder) == len(tree) else tree

    @property
    def train_indices(self) -> Sequence[int]:
        """Indices into `train` of the images to train on."""
        return range(len(self.train.labels)) if self._held_out is None else self._held_out[0]

    @property
    def val_indices(self) -> Sequence[int]:
        """Indices into `val` of the images to validate on."""
        return range(len(self.val.labels)) if self._held_out is None else self._held_out[1]

    def shards(self, split: str) -> Shards:
        """The shards of a split, whose classes are not looked at.

        Raises:
            DataError: If there are none.
        """
        return find_shards(self.root, self.splits[split], labelled=False)

    def summary(self, *, verify: bool = False) -> DataSummary:
        """Images in each split, and everything remarkable.

        Args:
            verify: Read every image, too.
        """
        if self.format == "shards":
            splits = {split: self.shards(split) for split in ("train", "val")}
            parts = [
                SplitSummary(split, self.root, shards.samples, notes=[f"{len(shards.urls)} shards"])
                for split, shards in splits.items()
            ]
            return DataSummary("pretraining", self.root, parts)
        parts = [
            self._part("train", self.train, self.train_indices, verify),
            self._part("val", self.val, self.val_indices, verify),
        ]
        return DataSummary("pretraining", self.root, parts)

    def _part(self, split: str, files: LabelledFiles, indices: Sequence[int], verify: bool) -> SplitSummary:
        if not len(indices):
            raise DataError(f"{files.path}: no image is left for the split {split}; add images")
        held = split == "val" and self._held_out is not None
        left_out = {} if held else dict(files.left_out)
        notes = ["held out of the training images"] if held else []
        if split == "val" and not self._labelled(files, indices):
            notes.append("no classes are known, so no nearest-neighbour classifier watches")
        broken = unreadable(len(indices), lambda i: read_file(files, indices[i], self._max_pixels)) if verify else []
        return SplitSummary(split, files.path, len(indices), left_out=left_out, notes=notes, unreadable=broken)

    def _labelled(self, files: LabelledFiles, indices: Sequence[int]) -> bool:
        return bool(np.any(files.labels[list(indices)] != UNLABELLED))

    def _split(self, split: str) -> str | None:
        """Path of a split of a folder; None where the folder, or file, is not divided into splits."""
        if Path(self.root).is_file():
            return None
        divided = all(find_split(self.root, name) for name in ("train", "val"))
        return find_split(self.root, split) if divided or split == "train" else None

    @cached_property
    def _held_out(self) -> tuple[list[int], list[int]] | None:
        fraction = self.holdout
        if fraction is None and (self.format == "huggingface" or self._split("val") is not None):
            return None
        return hold_out(self.train.labels, HOLDOUT if fraction is None else fraction, self.seed)
