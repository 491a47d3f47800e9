"""CSV files that grow row by row, survive an interruption, and are mended where they are damaged."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from vmamba.files import atomic_write, name_in_errors


class Table:
    """A table of numbers, one row per step or epoch.

    Attributes:
        problem: What was mended, in a line for a person, or None.

    Args:
        path: The file. Rows of an earlier part of the run are kept as far as `step`, those after it are dropped. A file
            with damaged rows is kept beside it as ``NAME.damaged``.
        step: Optimiser steps done; 0 to begin anew.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        self.problem: str | None = None
        rows, damaged = read_table(path) if step else ([], [])
        if damaged:
            copy = path.with_name(f"{path.name}.damaged")
            os.replace(path, copy)
            numbers = ", ".join(map(str, damaged[:5])) + (" …" if len(damaged) > 5 else "")
            self.problem = f"{path}: left out damaged rows (line {numbers}); the file as it was is {copy.name}"
        rows = [row for row in rows if float(row["step"]) <= step]
        self.columns = list(rows[0]) if rows else []
        lines = [",".join(values) for values in (self.columns, *(row.values() for row in rows)) if values]
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row; the first one names the columns, later ones may leave some out."""
        first = not self.columns
        self.columns = self.columns or list(row)
        with name_in_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n", extrasaction="ignore")
            if first:
                writer.writeheader()
            writer.writerow({name: f"{value:.8g}" for name, value in row.items()})


def read_table(path: Path) -> tuple[list[dict[str, str]], list[int]]:
    """The rows of a `Table` and the numbers of damaged lines; nothing where there is no file.

    A last line that is cut off is left out without a word: a killed process leaves one.
    """
    if not path.is_file():
        return [], []
    header, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    columns = header.split(",")
    if "step" not in columns:
        return [], [1] if lines else []
    rows, damaged = [], []
    for number, line in enumerate(lines[:-1], start=2):
        values = line.split(",")
        row = dict(zip(columns, values, strict=False))
        if len(values) == len(columns) and all(map(_is_number, values)) and row["step"]:
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def _is_number(text: str) -> bool:
    try:
        return not text or float(text) is not None
    except ValueError:
        return False
