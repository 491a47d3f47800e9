"""Read all of a data set once, to know before the first step what cannot be read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from vmamba.errors import ImageError
from vmamba.progress import progress_bar

T = TypeVar("T")
R = TypeVar("R")


def read_all(items: Iterable[T], total: int, read: Callable[[T], R], description: str) -> list[R]:
    """Results of `read` for every item, in order, by as many threads as there are processors, with a progress bar.

    Args:
        items: What to read.
        total: How many there are.
        read: Called in several threads at once.
        description: Of the progress bar.
    """
    results: list[R] = []
    pending = iter(items)
    with (
        warnings.catch_warnings(),  # those that readers switch off themselves would come back between threads
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
        progress_bar("files") as bar,
    ):
        warnings.simplefilter("ignore")
        task = bar.add_task(description, total=total)
        while part := list(islice(pending, 256)):  # few at a time, so that Ctrl-C ends it soon
            results += pool.map(read, part)
            bar.update(task, advance=len(part))
    return results


def unreadable(total: int, read: Callable[[int], object]) -> list[str]:
    """The error, one line, of every image that cannot be read.

    Args:
        total: Number of images.
        read: Reads the image of a number, or raises `ImageError`.
    """

    def error(index: int) -> str | None:
        try:
            read(index)
        except ImageError as error:
            return str(error)
        return None

    return [line for line in read_all(range(total), total, error, "reading images") if line is not None]
