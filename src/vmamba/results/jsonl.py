"""Rows in JSON Lines, appended one by one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vmamba.errors import DataError
from vmamba.files import name_in_errors, require_file
from vmamba.terminal import escaped_json

Row = Mapping[str, Any]

#: Seconds after which rows are on the disk, even when the machine fails; a process that is killed loses none.
SYNC_SECONDS = 2.0
#: What every row begins with.
_START = b'{"image": '


class JsonLines:
    """Rows that are appended to a file. What a killed writer left of its last row is cut off, and nothing else.

    Args:
        path: The file; created with its folder.
        on_row: Called with each row that is there.
        before_sync: Called before rows are put on the disk, for what must be there first.

    Raises:
        DataError: If the file holds anything but rows.
        OSError: If it cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        on_row: Callable[[Row], None] = lambda row: None,
        *,
        before_sync: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.count, self._before_sync = path, 0, before_sync
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            require_file(path)
            whole = self._read(on_row)
            os.truncate(path, whole)
        self._file = path.open("ab")
        self._synced = time.monotonic()

    def _read(self, on_row: Callable[[Row], None]) -> int:
        """Pass rows on; returns the bytes that they take."""
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                row = _row(line)
                if row is None:
                    if file.read(1) or not _is_torn(line):
                        raise DataError(
                            f"{self.path}: line {self.count + 1} is no row of results; choose another --output"
                        )
                    break
                whole += len(line)
                self.count += 1
                on_row(row)
        return whole

    def add(self, row: Row) -> None:
        """Append a row."""
        with name_in_errors(self.path):
            self._file.write((escaped_json(row) + "\n").encode())
            self._file.flush()
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()
        self.count += 1

    def sync(self) -> None:
        """Have the rows on the disk."""
        self._before_sync()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """End; the rows are on the disk."""
        with name_in_errors(self.path), self._file:
            self._file.flush()
            self.sync()


def _is_torn(line: bytes) -> bool:
    """True for what a writer that was killed, or a machine that lost its power and left zeros, may leave of a row."""
    begin = line.rstrip(b"\0")[: len(_START)]
    return _START.startswith(begin)


def _row(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("image"), str) else None
