"""Results of `predict`, `detect` and `segment`: given out as they come, with the images that failed at the end."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vmamba.checkpoints.info import info_path
from vmamba.cli.explanation import explain
from vmamba.errors import VMambaError
from vmamba.files import atomic_write, lock, refuse_overwriting, remove_leftovers, unique_output_names
from vmamba.progress import is_quiet
from vmamba.terminal import escaped_json, printable

Add = Callable[[Any], None]

#: Errors of writing that the next image would meet, too.
_HOPELESS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EPIPE, errno.EACCES, errno.EPERM}


class Failures:
    """The images that failed. One image ends nothing else."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._bug: Exception | None = None

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, path: Path, error: Exception) -> None:
        """Remember an image that failed.

        Raises:
            OSError: The error itself, where the next image would meet it too: a full disk.
        """
        if isinstance(error, OSError) and error.errno in _HOPELESS and not isinstance(error, VMambaError):
            raise error
        reason = explain(error)
        if reason is None:
            reason = f"{type(error).__name__}: {error}"
            self._bug = self._bug or error
        self._lines.append(reason if str(path) in reason else f"{path}: {reason}")

    @contextmanager
    def of(self, path: Path) -> Iterator[None]:
        """Remember an error of the ``with`` block instead of raising it; see `add`."""
        try:
            yield
        except Exception as error:
            self.add(path, error)

    def finish(self) -> int:
        """List the failures on the error stream.

        Returns:
            Exit status: 0, or 1 if there was one.

        Raises:
            Exception: The first error that was not the image's fault but a bug, after all are listed.
        """
        for line in self._lines:
            print(f"vmamba: failed: {printable(line)}", file=sys.stderr)
        if self._bug is not None:
            raise self._bug
        return 1 if self._lines else 0


def output_paths(
    images: Sequence[Path], folder: Path, endings: Sequence[str], others: Sequence[str], checkpoint: Path
) -> dict[Path, list[Path]]:
    """Paths of the results of each image: unique over the call, none of them an input.

    Args:
        images: The inputs.
        folder: Of the results.
        endings: Of each result of an image, appended to its stem: ``(".png", "_labels.png")``.
        others: Names of further files in the folder.
        checkpoint: Another input.

    Raises:
        OptionError: If a result would be written over an input.
    """
    stems = unique_output_names(images, endings)
    paths = {image: [folder / f"{stems[image]}{ending}" for ending in endings] for image in images}
    outputs = [path for group in paths.values() for path in group] + [folder / name for name in others]
    refuse_overwriting(outputs, [*images, checkpoint, info_path(checkpoint)])
    return paths


@contextmanager
def results_folder(folder: Path) -> Iterator[None]:
    """Have a folder for results to oneself, cleared of what a killed command left.

    Raises:
        OptionError: If another command writes into it now.
    """
    message = f"another command is writing its results into {folder}; wait for it, or choose another --output folder"
    with lock(folder / ".results.lock", message):
        remove_leftovers(folder, recursive=False)
        yield


def print_json(value: Any, before: str = "") -> None:
    """Print a value as one line of JSON."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    print(before + escaped_json(value, ascii_only=not utf8), flush=True)


@contextmanager
def printer(as_json: bool, *, written: bool) -> Iterator[Callable[[Sequence[Any], Sequence[str]], None]]:
    """A function that prints the results of one image at once.

    It takes records, the entries of a JSON array, and lines for people, and prints one or the other.

    Args:
        as_json: Print the records.
        written: The results are written to files, too: nobody who wants it quiet needs the lines.
    """
    with printed_array() if as_json else nullcontext() as add:

        def show(records: Sequence[Any], lines: Sequence[str]) -> None:
            if add is not None:
                for record in records:
                    add(record)
            elif not (written and is_quiet()):
                print("\n".join(map(printable, lines)), flush=True)

        yield show


@contextmanager
def printed_array() -> Iterator[Add]:
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


@contextmanager
def array_file(path: Path) -> Iterator[Add]:
    """Write a JSON array entry by entry to a file that appears when the ``with`` block ends, by an interruption too."""
    interruption: BaseException | None = None
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n", write_through=True)
        count = 0

        def add(value: Any) -> None:
            nonlocal count
            text.write(("," if count else "[") + escaped_json(value) + "\n")
            count += 1

        try:
            yield add
        except BaseException as error:
            interruption = error
        text.write("]\n" if count else "[]\n")
        text.detach()
    if interruption is not None:
        raise interruption


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file."""
    with atomic_write(path) as file:
        file.write((escaped_json(value) + "\n").encode())
