"""Names of the files that are written for each image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vmamba.results.seen import Seen


class OutputNames:
    """Paths below a folder, laid out as the images below their source, of which no two are the same.

    Args:
        folder: Of the results.
        endings: Of each result of an image, appended to its stem: ``(".png", "_labels.png")``.
    """

    def __init__(self, folder: Path, endings: Sequence[str]) -> None:
        self.folder, self.endings, self._taken = folder, tuple(endings), Seen()

    def claim(self, below: str) -> list[Path]:
        """Paths for the results of an image.

        Args:
            below: Its path below its source; another one of the same name gets the smallest free number.
        """
        original = stem = os.path.splitext(below)[0]
        number = 1
        while any(name in self._taken for name in self._folded(stem)):
            number += 1
            stem = f"{original}_{number}"
        self._take(stem)
        return [self.folder / f"{stem}{ending}" for ending in self.endings]

    def restore(self, path: str) -> None:
        """Take the names that an earlier call claimed; `path` is the first of them."""
        self._take(os.path.relpath(path, self.folder).removesuffix(self.endings[0]))

    def _take(self, stem: str) -> None:
        for name in self._folded(stem):
            self._taken.add(name)

    def _folded(self, stem: str) -> list[str]:
        """Without case: names that differ in it alone are one file on many systems."""
        return [f"{stem}{ending}".casefold() for ending in self.endings]
