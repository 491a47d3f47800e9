"""Faults of annotations, each described with its place, its value and what was expected."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vmamba.errors import DataError

#: Faults that are described; of more, only the number is known.
MAX_FAULTS = 100
_SHOWN = 3


class AnnotationError(DataError):
    """Annotations that cannot be used. The message is one line that names the file, the number of faults and some.

    Attributes:
        faults: Descriptions, one line each, `MAX_FAULTS` at most.

    Args:
        path: The file.
        faults: Descriptions.
        count: How many there are; default: as many as are described.
    """

    def __init__(self, path: str | Path, faults: Sequence[str], count: int | None = None) -> None:
        self.faults = list(faults[:MAX_FAULTS])
        count = count or len(faults)
        more = f"; and {count - _SHOWN:,} more, see vmamba check-data" if count > _SHOWN else ""
        number = f"{count:,} faults: " if count > 1 else ""
        super().__init__(f"{path}: {number}{'; '.join(faults[:_SHOWN])}{more}")


class Faults:
    """Collects the faults of a file.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.count = path, 0
        self._faults: list[str] = []

    def add(self, fault: str) -> None:
        """Note one."""
        self.count += 1
        if self.count <= MAX_FAULTS:
            self._faults.append(fault)

    def check(self) -> None:
        """Raise `AnnotationError` if there are any."""
        if self.count:
            raise AnnotationError(self.path, self._faults, self.count)


def shown(value: object) -> str:
    """A value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
