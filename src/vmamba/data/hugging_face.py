"""Image classification data of the Hugging Face hub, through the package datasets."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np

from vmamba.data.image_tree import UNLABELLED
from vmamba.errors import DataError, MissingPackageError
from vmamba.terminal import printable


class HuggingFaceImages:
    """A data set with the columns ``image`` and ``label``; see `vmamba.data.image_folder.LabelledFiles`.

    Args:
        name: A data set's name or local folder, as ``datasets.load_dataset`` takes it.
        split: One of its splits.
        labelled: Require the column ``label``; otherwise images without it are of the class `UNLABELLED`.

    Raises:
        MissingPackageError: If `datasets` is not installed.
        DataError: If it cannot be loaded, or lacks one of the columns.
    """

    def __init__(self, name: str, split: str, *, labelled: bool = True) -> None:
        try:
            import datasets
        except ImportError:
            raise MissingPackageError("datasets", "train") from None
        try:
            table = datasets.load_dataset(name, split=split)
        except Exception as error:  # the library raises nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{name}: cannot load the data set's split {split!r}: {reason}") from None
        labelled = labelled or "label" in table.column_names
        needed = ("image", "label") if labelled else ("image",)
        missing = [column for column in needed if column not in table.column_names]
        if missing:
            columns = ", ".join(table.column_names)
            raise DataError(f"{name}: the data set has no column {missing[0]!r}, but {columns}; rename it")
        self.path = name
        self.left_out: Counter[str] = Counter()
        self._images: Any = table.select_columns("image").cast_column("image", datasets.Image(decode=False))
        self.classes: dict[str, int] = {}
        self.labels = np.full(len(self._images), UNLABELLED, dtype=np.int64)
        if not labelled:
            return
        labels = table["label"][:]
        if not all(isinstance(label, int) and label >= 0 for label in labels):
            raise DataError(f"{name}: the column 'label' of the split {split!r} does not hold class numbers")
        self.labels = np.array(labels, dtype=np.int64)
        names = getattr(table.features["label"], "names", None) or range(max(labels, default=-1) + 1)
        self.classes = {printable(name): i for i, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Path of a file, or its number in the data set."""
        return str(self._images[index]["image"]["path"] or f"number {index}")

    def open(self, index: int) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            OSError: If it cannot be opened.
        """
        image = self._images[index]["image"]
        return io.BytesIO(image["bytes"]) if image["bytes"] else Path(image["path"]).open("rb")
