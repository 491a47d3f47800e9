"""Image classification data as people keep them: a folder, or a tar file, of class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from vmamba.data.class_names import class_name, natural_key, number_classes
from vmamba.data.image_tree import ImageTree, in_folder
from vmamba.data.walk import is_hidden
from vmamba.errors import DataError

#: Names under which the splits of a folder are looked for, `SPLIT` or `SPLIT.tar`.
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}

_OUTSIDE = "images outside class folders"


class LabelledFiles(Protocol):
    """Image files with a class each.

    Attributes:
        path: The folder, file or data set, as it was given.
        classes: Class name → number.
        labels: Class number of each file, int64 (N,).
        left_out: Reason → number of files and folders that were left out.
    """

    path: str
    classes: dict[str, int]
    left_out: Counter[str]

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def name(self, index: int) -> str:
        """Name of a file for messages, its path where it has one."""
        ...

    def open(self, index: int) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            OSError: If it cannot be opened.
        """
        ...


class ImageFolder(ImageTree):
    """Images below class folders, at any depth; see `LabelledFiles`.

    The class is the name of the first folder, in natural order of the names: ``train/cat/2023/1.jpg`` is a cat. Hidden
    entries, files that are no images, and images directly in `path` are left out and counted.

    Args:
        path: The folder, or an uncompressed tar file of the same structure, perhaps below one folder named after it.
        classes: Class name → number; numbered here where not given.

    Raises:
        DataError: For a class folder without images, a class that `classes` does not have, no images at all, or a tar
            file that cannot be read.
        OSError: If a folder cannot be read.
    """

    def __init__(self, path: str | Path, classes: Mapping[str, int] | None = None) -> None:
        super().__init__(path)
        outside = len(self) - self.count(in_folder)
        if outside:
            self.left_out[_OUTSIDE] = outside
        self._names = list(filter(in_folder, self._names))
        names = [class_name(name.partition("/")[0]) for name in self._names]
        self._check(names, classes)
        self.classes = dict(classes) if classes else number_classes(names)
        self._labels = np.array([self.classes[name] for name in names], dtype=np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._labels

    def _check(self, names: list[str], classes: Mapping[str, int] | None) -> None:
        known = set(names)
        folders = [] if self._archive else [e.name for e in os.scandir(self.path) if e.is_dir(follow_symlinks=False)]
        for folder in sorted(folders, key=natural_key):
            if class_name(folder) not in known and not is_hidden(folder):
                raise DataError(f"{self.path}/{folder}: the class folder holds no images; fill it or remove it")
        if not names:
            outside = f" ({self.left_out[_OUTSIDE]} lie outside of any)" if self.left_out[_OUTSIDE] else ""
            raise DataError(f"{self.path}: no images in class folders{outside}; put them into one folder per class")
        for name in sorted(known.difference(classes), key=natural_key) if classes else ():
            some = ", ".join(list(classes or ())[:5]) + (", …" if len(classes or ()) > 5 else "")
            raise DataError(f"{self.path}/{name}: the class {name!r} is not among the training classes ({some})")


def find_split(root: str, split: str) -> str | None:
    """Path of a split of a folder, or None: a folder, or a tar file of class folders.

    Args:
        root: The folder of the data.
        split: ``"train"`` or ``"val"``; some synonyms are tried.

    Raises:
        DataError: If there is no such folder.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder; --data names the folder that holds train/ and val/")
    candidates = [os.path.join(root, name + ending) for name in SPLITS[split] for ending in ("", ".tar")]
    return next((path for path in candidates if os.path.exists(path)), None)
