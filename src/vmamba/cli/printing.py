"""Results on the terminal: lines for people, or JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vmamba.files import atomic_write
from vmamba.progress import is_quiet
from vmamba.terminal import escaped_json, is_utf8, printable


def print_json(value: Any, before: str = "") -> None:
    """Print a value as one line of JSON."""
    print(before + escaped_json(value, ascii_only=not is_utf8(sys.stdout)), flush=True)


@contextmanager
def printer(
    as_json: bool, *, written: bool, shown: bool = True
) -> Iterator[Callable[[Sequence[Any], Sequence[str]], None]]:
    """A function that prints the results of one image at once.

    It takes records, the entries of a JSON array, and lines for people, and prints one or the other.

    Args:
        as_json: Print the records.
        written: The results are written to files, too: nobody who wants it quiet needs the lines.
        shown: Print the lines at all.
    """
    with printed_array() if as_json else nullcontext() as add:

        def show(records: Sequence[Any], lines: Sequence[str]) -> None:
            if add is not None:
                for record in records:
                    add(record)
            elif shown and not (written and is_quiet()):
                print("\n".join(map(printable, lines)), flush=True)

        yield show


@contextmanager
def printed_array() -> Iterator[Callable[[Any], None]]:
    """Print a JSON array entry by entry; it is whole even after an interruption."""
    count = 0

    def add(value: Any) -> None:
        nonlocal count
        print_json(value, before="," if count else "[")
        count += 1

    try:
        yield add
    finally:
        print("]" if count else "[]", flush=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file."""
    with atomic_write(path) as file:
        file.write((escaped_json(value) + "\n").encode())
