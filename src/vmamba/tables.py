"""Tables as CSV files, whole or not there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vmamba.files import atomic_write

Row = Mapping[str, object]


def write_csv(path: Path, rows: Sequence[Row], head: Mapping[str, str] | None = None) -> Path:
    """Write rows, whose keys are the columns.

    Args:
        path: The file; missing folders are created.
        rows: At least one.
        head: Comments above the table, such as where it comes from.

    Returns:
        The path.
    """
    columns = list(rows[0])
    return write_table(path, columns, ([row.get(name, "") for name in columns] for row in rows), head)


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], head: Mapping[str, str] | None = None
) -> Path:
    """`write_csv` for rows that are lists of values."""
    text = io.StringIO()
    for key, value in (head or {}).items():
        text.write(f"# {key}: {value}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))  # a file name may hold bytes that are no text
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows that `write_csv` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))
