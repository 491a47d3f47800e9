"""The images below a folder, or in a tar file, without classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vmamba.data.class_names import natural_key
from vmamba.data.images import image_endings
from vmamba.data.tar import list_tar, open_member
from vmamba.data.walk import by_ending, walk

#: The class of an image that has none.
UNLABELLED = -1


class ImageTree:
    """Images below a folder, at any depth, in natural order of their names; see `LabelledFiles`.

    All are of the class `UNLABELLED`. Hidden entries and files that are no images are left out and counted.

    Args:
        path: The folder, or an uncompressed tar file, perhaps with one folder in it that is named after it.

    Raises:
        DataError: For a tar file that cannot be read.
        OSError: If a folder cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.left_out: Counter[str] = Counter()
        self._archive = not os.path.isdir(path)
        members = list_tar(self.path, self.left_out) if self._archive else {}
        files = list(members) if self._archive else walk(path, self.left_out)
        self._names = sorted(by_ending(files, image_endings(), self.left_out), key=natural_key)
        self._members = members
        self.classes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class number of each file, int64 (N,)."""
        return np.full(len(self), UNLABELLED, dtype=np.int64)

    def count(self, condition: Callable[[str], bool]) -> int:
        """Number of the images whose name, relative to the folder, is of a certain kind."""
        return sum(map(condition, self._names))

    def name(self, index: int) -> str:
        """Path of a file; within a tar file, the archive's and the member's."""
        return f"{self.path}:{self._names[index]}" if self._archive else os.path.join(self.path, self._names[index])

    def open(self, index: int) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            OSError: If it cannot be opened.
        """
        if self._archive:
            return open_member(self.path, self._members[self._names[index]])
        return Path(self.name(index)).open("rb")


def in_folder(name: str) -> bool:
    """True for a file that lies in a folder of its tree."""
    return "/" in name
