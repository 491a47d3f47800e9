"""Images and results of `predict`, `detect`, `segment` and `embed`: which are to do, and where results go."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.progress import Progress

from vmamba.checkpoints.info import info_path
from vmamba.cli.arguments import add_json, add_max_pixels
from vmamba.cli.failures import Failures
from vmamba.cli.printing import printer
from vmamba.data.decoding import WORKERS
from vmamba.data.sources import STDIN, ImageRef, Shard, list_images
from vmamba.errors import OptionError
from vmamba.files import lock, refuse_overwriting, remove_leftovers
from vmamba.progress import progress_bar, remark
from vmamba.results.jsonl import JsonLines, Row
from vmamba.results.names import OutputNames
from vmamba.results.seen import Seen

#: Images and seconds of listing before the first image is read, for the time left.
AHEAD, AHEAD_SECONDS = 10_000, 2.0
#: Fewer images are decoded without processes.
FEW = 32
#: Failures listed at the end where they are in the output, too.
LISTED = 100
#: The column that is written as .npy.
VECTOR = "embedding"
#: Endings of files that a folder is not meant by.
OTHER_FORMATS = (".json", ".csv", ".tsv", ".txt", ".npy", ".npz")


def add_work(parser: argparse.ArgumentParser, output: str | None) -> None:
    """Add the options of every command that works through images.

    Args:
        parser: Of the command.
        output: Default of ``--output``.
    """
    parser.add_argument(
        "images",
        nargs="+",
        metavar="SOURCE",
        help="image files, folders, quoted glob patterns, tar archives (WebDataset shards), lists .txt of files, or -",
    )
    add_max_pixels(parser)
    default = f"default: {output}" if output else "default: print them"
    parser.add_argument(
        "--output",
        type=Path,
        default=output and Path(output),
        metavar="PATH",
        help=f"results.jsonl, results.parquet (a folder of parts) or a folder; {default}",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with the results that are in --output")
    existing.add_argument("--overwrite", action="store_true", help="replace the results that are in --output")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="part I of N of the images, from 0")
    parser.add_argument(
        "--workers", type=_count, default=WORKERS, metavar="N", help=f"decoding processes (default {WORKERS})"
    )
    add_json(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError
    return int(text)


class Listing:
    """The images of a command, listed ahead as far as it is cheap.

    Attributes:
        images: All of them.
        total: Their number, where it is known.
        workers: Decoding processes that they are worth.

    Args:
        options: See `add_work`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        images = list_images(options.images, Shard.parse(options.shard))
        ahead: list[ImageRef] = []
        self.total: int | None = None
        if STDIN not in options.images:
            start = time.monotonic()
            for image in islice(images, AHEAD):
                ahead.append(image)
                if image.content is not None or time.monotonic() - start > AHEAD_SECONDS:
                    break
            else:
                self.total = len(ahead) if len(ahead) < AHEAD else None
        self.images: Iterator[ImageRef] = chain(ahead, images)
        self.workers = 0 if self.total is not None and self.total < FEW else options.workers


class Results:
    """Results of images as they come: printed, written, or both.

    Attributes:
        images: Those to do: each once, none that is done.
        names: Names of further files of an image; None where rows are all.
        bar: Of progress.

    Args:
        listing: The images.
        path: Of the rows; None to print only.
        names: See above.
        bar: See above.
        show: Prints an image's records or lines.
        as_json: It prints records, among which nothing else may be printed.
    """

    def __init__(
        self,
        listing: Listing,
        path: Path | None,
        names: OutputNames | None,
        bar: Progress,
        show: Callable[[Sequence[Any], Sequence[str]], None],
        as_json: bool,
    ) -> None:
        self.path, self.names, self.bar, self._show, self._as_json = path, names, bar, show, as_json
        self.rows: Any = None
        self.images = self._remaining(listing)
        self._seen, self._done, self._earlier = Seen(), 0, 0
        self._failures = Failures(LISTED if path else None)
        self._total, self._task = listing.total, bar.add_task("images", total=listing.total)
        self._start = time.perf_counter()

    def restore(self, row: Row) -> None:
        """Take a row of an earlier call for done."""
        self._seen.add(row["image"])
        self._earlier += 1
        if row.get("error"):
            self._failures.note(row["image"], row["error"])
        elif self.names is not None and row.get("picture"):
            self.names.restore(row["picture"])

    def _remaining(self, listing: Listing) -> Iterator[ImageRef]:
        inside = _inside(self.names.folder) if self.names else None
        for image in listing.images:
            if inside is not None and inside(os.path.dirname(image.path)):
                assert self.names is not None
                raise OptionError(
                    f"{image.name} lies in the folder of the results, and would be written over an input; "
                    f"choose another --output than {self.names.folder}"
                )
            if self._seen.add(image.name):
                yield image
            elif self._total is not None:
                self._total -= 1
                self.bar.update(self._task, total=self._total)

    def add(self, row: Row, lines: Sequence[str]) -> None:
        """Give out the results of an image: the row, or lines for people."""
        if self.rows is not None:
            self.rows.add(row)
        self._show([row], lines)
        self._advance()

    def fail(self, image: str, error: Exception) -> None:
        """Note an image that failed.

        Raises:
            OSError: The error itself, where the next image would meet it too: a full disk.
        """
        reason = self._failures.add(image, error)
        if self.rows is not None:
            self.rows.add({"image": image, "error": reason})
        self._advance()

    @contextmanager
    def of(self, image: ImageRef) -> Iterator[None]:
        """Note an error of the ``with`` block instead of raising it."""
        try:
            yield
        except Exception as error:
            self.fail(image.name, error)

    def _advance(self) -> None:
        self._done += 1
        self.bar.advance(self._task)

    def finish(self, waited: float = 0.0) -> int:
        """Say what was done, and list the failures; returns the exit status.

        Args:
            waited: Seconds in which the model waited for images.
        """
        if self.path is not None and not self._as_json:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            earlier = f", {self._earlier:,} before" if self._earlier else ""
            remark(
                f"{self._done:,} images{earlier}, {self._done / seconds:,.3g} a second, {waited / seconds:.0%} of the "
                f"time waiting for images; results in {self.path}"
            )
        return self._failures.finish(str(self.path))


@contextmanager
def results_of(
    options: argparse.Namespace,
    listing: Listing,
    columns: Mapping[str, Any],
    *,
    rows: str,
    endings: Sequence[str] = (),
    others: Sequence[str] = (),
) -> Iterator[Results]:
    """Open the output of a command; rows that are given out are kept when an interruption ends the ``with`` block.

    Args:
        options: See `add_work`.
        listing: The images.
        columns: Of a row; see `vmamba.results.parquet.ParquetParts`.
        rows: Name of the rows in a folder.
        endings: Of the files of an image in a folder.
        others: Names of further files in a folder.

    Raises:
        OptionError: If there are results already, another command writes them, or an input would be written over.
    """
    output: Path | None = options.output
    if output is None and (options.resume or (options.overwrite and not getattr(options, "picture", None))):
        raise OptionError("--resume and --overwrite need --output")
    files_of_rows = (".jsonl", ".parquet", *((".npy",) if VECTOR in columns else ()))
    in_folder = output is not None and output.suffix not in files_of_rows
    if output is not None and output.suffix in OTHER_FORMATS and in_folder:
        raise OptionError(
            f"{output}: results are written as {', '.join(files_of_rows)} or into a folder, not as {output.suffix}"
        )
    path = output / rows if output is not None and in_folder else output
    with ExitStack() as stack:
        if path is not None:
            files = [path, *(path.parent / name for name in others if in_folder)]
            refuse_inputs(options, files)
            if in_folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            message = f"another command is writing its results into {output}; wait for it, or choose another --output"
            stack.enter_context(lock(path.with_name(f".{path.name}.lock"), message))
            _make_room(path, options)
            if in_folder:
                remove_leftovers(path.parent, recursive=False)
            stack.push(partial(_remove_unused, [file for file in _files(path) if not file.exists()]))
        show = stack.enter_context(printer(options.json, written=path is not None, shown=path is None or in_folder))
        bar = stack.enter_context(progress_bar("images"))
        names = OutputNames(path.parent, endings) if path is not None and in_folder else None
        results = Results(listing, path, names, bar, show, options.json)
        if path is not None:
            results.rows = _open(path, columns, results)
            stack.callback(results.rows.close)
        yield results


def refuse_inputs(options: argparse.Namespace, files: Sequence[Path]) -> None:
    """Check that no file to be written is an input of a command.

    Raises:
        OptionError: If one is.
    """
    inputs = [Path(source) for source in options.images if os.path.isfile(source)]
    for given in (options.checkpoint, getattr(options, "labels", None)):
        inputs += [given, info_path(given)] if given is not None else []
    refuse_overwriting(files, inputs)


def _make_room(path: Path, options: argparse.Namespace) -> None:
    there = [file for file in _files(path) if file.exists()]
    if options.resume or not there:
        return
    if not options.overwrite:
        raise OptionError(f"{there[0]} exists: --resume goes on with it, --overwrite replaces it")
    if path.is_dir():
        there = [*path.glob("part-*.parquet"), *path.glob("_journal.jsonl")]
    for file in there:
        file.unlink()


def _files(path: Path) -> list[Path]:
    """The files or the folder that hold the rows."""
    return [path, path.with_suffix(".jsonl")] if path.suffix == ".npy" else [path]


def _remove_unused(files: Sequence[Path], kind: type[BaseException] | None, *_: object) -> None:
    """Leave no new file behind when a command is refused before it has written anything."""
    for file in files if kind is not None else ():
        if file.is_file() and not file.stat().st_size:
            file.unlink()


def _open(path: Path, columns: Mapping[str, Any], results: Results) -> Any:
    if path.suffix == ".parquet":
        from vmamba.results.parquet import ParquetParts

        return ParquetParts(path, columns, results.restore)
    if path.suffix == ".npy":
        from vmamba.results.vectors import Vectors

        return Vectors(path, VECTOR, results.restore)
    return JsonLines(path, results.restore)


def _inside(folder: Path) -> Callable[[str], bool]:
    """A function that tells whether a folder is this one or lies in it, under whatever name."""
    top = os.path.realpath(folder).casefold()

    @lru_cache(maxsize=1024)
    def inside(other: str) -> bool:
        real = os.path.realpath(other).casefold()
        return real == top or real.startswith(top + os.sep)

    return inside
