"""A vector an image in NumPy's format, beside rows that say whose they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from vmamba.errors import DataError
from vmamba.files import name_in_errors
from vmamba.results.jsonl import JsonLines, Row


class Vectors:
    """``NAME.npy``, float32 (N, D), to which vectors are appended, and ``NAME.jsonl``, whose rows say what is where.

    A row has the image and ``index``, the line of its vector, or ``error``. NumPy leaves room in the header for any N.

    Args:
        path: The ``.npy`` file.
        column: Of the vectors in rows that are added.
        on_row: Called with each row that is there.

    Raises:
        DataError: If the vectors are not there that the rows speak of, or either file is another's.
    """

    def __init__(self, path: Path, column: str, on_row: Callable[[Row], None]) -> None:
        self.path, self._column, self._count, self._width = path, column, 0, 0
        lines = path.with_suffix(".jsonl")
        if path.exists() and not lines.exists():  # rows are begun first
            raise DataError(
                f"{path}: has no {lines.name} beside it, so its vectors are nobody's; choose another --output"
            )

        def read(row: Row) -> None:
            if "index" not in row and "error" not in row:
                raise DataError(f"{lines}: holds other rows than those of vectors; choose another --output")
            self._count += "index" in row
            on_row(row)

        self._rows = JsonLines(lines, read, before_sync=self._sync)
        self._file = path.open("r+b" if path.exists() else "w+b")
        if self._count:
            self._resume()

    def _resume(self) -> None:
        """Cut off vectors without rows."""
        try:
            npy.read_magic(self._file)
            shape, _, dtype = npy.read_array_header_1_0(self._file)
            self._width = shape[1]
        except (ValueError, IndexError) as error:
            raise DataError(f"{self.path}: cannot be continued: {error}") from None
        end = self._file.tell() + self._count * self._width * 4
        if dtype != np.float32 or os.fstat(self._file.fileno()).st_size < end:
            self._width = 0
            self.close()
            raise DataError(f"{self.path}: has fewer vectors than {self._rows.path} rows; begin again with --overwrite")
        self._file.truncate(end)
        self._file.seek(end)

    def add(self, row: Row) -> None:
        """Append a vector and its row, or the row of an image that failed."""
        known: dict[str, Any] = dict(row)
        vector = known.pop(self._column, None)
        if vector is not None:
            values = np.asarray(vector, np.float32)
            with name_in_errors(self.path):
                if not self._width:
                    self._width = len(values)
                    self._write_header()
                self._file.write(values.tobytes())
                self._file.flush()
            known["index"] = self._count
            self._count += 1
        self._rows.add(known)

    def close(self) -> None:
        """End; the vectors are on the disk."""
        self._rows.close()
        self._file.close()

    def _sync(self) -> None:
        with name_in_errors(self.path):
            if self._width:
                end = self._file.tell()
                self._write_header()
                self._file.seek(end)
                self._file.flush()
            os.fsync(self._file.fileno())

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)}
        self._file.seek(0)
        npy.write_array_header_1_0(self._file, header)
