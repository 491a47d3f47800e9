"""Rows in Parquet: a folder of part files, which every reader of Parquet takes for one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmamba.errors import DataError, MissingPackageError
from vmamba.files import atomic_write, remove_leftovers
from vmamba.results.jsonl import JsonLines, Row
from vmamba.results.seen import Seen

if TYPE_CHECKING:
    import pyarrow

#: Rows of a part, but for the last one of each call.
PART_ROWS = 10_000
#: Rows of the part that is being collected; readers leave out names that begin with an underscore.
JOURNAL = "_journal.jsonl"


class ParquetParts:
    """Rows that are collected in a journal, and moved into a part file when there are many.

    A part is written whole, then the journal is emptied; rows that a writer killed in between left in both are taken
    from the journal.

    Args:
        path: The folder.
        columns: Name → type: an Arrow type's name, a list of one type, or a mapping of fields.
        on_row: Called with each row that is there; rows of parts have their image and error only.

    Raises:
        MissingPackageError: If pyarrow is not installed.
        DataError: If the folder holds other files, or a part is damaged.
    """

    def __init__(self, path: Path, columns: Mapping[str, Any], on_row: Callable[[Row], None]) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise MissingPackageError("pyarrow", "parquet") from None
        self.path, self._schema = path, _schema(columns)
        path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path, recursive=False)
        self._parts, seen = sorted(path.glob("part-*.parquet")), Seen()
        for part in self._parts:
            try:
                for batch in pq.ParquetFile(part).iter_batches(columns=["image", "error"]):
                    for row in batch.to_pylist():
                        seen.add(row["image"])
                        on_row(row)
            except Exception as error:  # pyarrow's errors have no common class of their own
                raise DataError(f"{part}: cannot be read: {str(error).splitlines()[0]}") from None
        self._pending: list[Row] = []
        doubled: list[Row] = []
        self._journal = JsonLines(
            path / JOURNAL, lambda row: (doubled if row["image"] in seen else self._pending).append(row)
        )
        for row in self._pending:
            on_row(row)
        if doubled:
            self._empty_journal()

    def add(self, row: Row) -> None:
        """Append a row."""
        self._journal.add(row)
        self._pending.append(row)
        if len(self._pending) >= PART_ROWS:
            self._write_part()

    def close(self) -> None:
        """End: all rows are in parts."""
        if self._pending:
            self._write_part()
        self._journal.close()
        self._journal.path.unlink()

    def _write_part(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / f"part-{len(self._parts):06d}.parquet"
        with atomic_write(path) as file:
            pq.write_table(pa.Table.from_pylist(list(map(dict, self._pending)), schema=self._schema), file)
        self._parts.append(path)
        self._pending = []
        self._empty_journal()

    def _empty_journal(self) -> None:
        self._journal.close()
        self._journal.path.unlink()
        self._journal = JsonLines(self._journal.path)


def _schema(columns: Mapping[str, Any]) -> pyarrow.Schema:
    import pyarrow as pa

    def arrow(kind: Any) -> Any:
        if isinstance(kind, str):
            return pa.type_for_alias(kind)
        if isinstance(kind, list):
            return pa.list_(arrow(kind[0]))
        return pa.struct([(name, arrow(value)) for name, value in kind.items()])

    return pa.schema([(name, arrow(kind)) for name, kind in columns.items()])
