"""Batches of one process of a run, a pure function of (seed, epoch, number of the batch).

What is drawn for a sample (crop, flip, colours …) is seeded from (seed, epoch, sample). So neither the number of loader
processes nor that of training processes changes what a global batch holds, and a run continues anywhere without any
state of its loaders.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vmamba.data.seeding import seeded
from vmamba.errors import DataError, ImageError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Batch = TypeVar("Batch")

#: Unreadable images in one batch, or in a row, that are taken for a broken data set.
MAX_UNREADABLE = 50


class Samples(Protocol[T_co]):
    """A data set with random access. ``samples[i]`` raises `ImageError` for an image that cannot be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...


class IndexedLoader(Generic[Batch]):
    """Batches of a data set with random access.

    Training: the epoch's order is cut into global batches of ``batch_size × world_size``, of which process `rank`
    takes its part; an incomplete last one is left out. Evaluation: the process takes every ``world_size``-th image.

    Attributes:
        skipped: Images that could not be read and were left out (replaced by the next one in training), one line each.

    Args:
        samples: The data set.
        collate: Samples → batch.
        batch_size: Images per batch of this process.
        training: See above.
        seed: Of the order and of what samples draw.
        rank: Number of this process.
        world_size: Processes.
        workers: Loader processes; 0 to load in this one.
        strict: Raise at an unreadable image.

    Raises:
        DataError: If there are no images, or too few for one global batch of training.
    """

    def __init__(
        self,
        samples: Samples[T],
        collate: Callable[[list[T]], Batch],
        *,
        batch_size: int,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        strict: bool = False,
    ) -> None:
        self.images = len(samples)
        self.batch_size, self.training, self.seed = batch_size, training, seed
        self.rank, self.world_size, self.strict = rank, world_size, strict
        self.skipped: list[str] = []
        together = batch_size * world_size
        if training and self.images < together:
            raise DataError(
                f"{self.images} training images are fewer than one batch of {together}; use a smaller batch size"
            )
        if not self.images:
            raise DataError("there are no images to evaluate on")
        self._ahead = _Ahead()
        self._loader: DataLoader[tuple[Batch | None, list[str]]] = DataLoader(
            _Drawn(samples, seed, training),
            batch_sampler=self._ahead,
            collate_fn=_Collate(collate),
            num_workers=workers,
            worker_init_fn=leave_signals_to_training,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        if self.training:
            return self.images // (self.batch_size * self.world_size)
        return len(range(0, len(range(self.rank, self.images, self.world_size)), self.batch_size))

    def order(self, epoch: int) -> Sequence[int]:
        """Every image once, in the order of a training epoch. The same in every process."""
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(self.images).tolist()
        return order

    def indices(self, epoch: int) -> Iterator[list[int]]:
        """Indices of the images in each batch of this process."""
        size, together = self.batch_size, self.batch_size * self.world_size
        if self.training:
            order = self.order(epoch)
            for first in range(self.rank * size, len(self) * together, together):
                yield list(order[first : first + size])
        else:
            mine = range(self.rank, self.images, self.world_size)
            for first in range(0, len(mine), size):
                yield list(mine[first : first + size])

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on.

        Raises:
            ImageError: For an unreadable image where `strict`, or for many in a row.
        """
        numbered = islice(self.indices(epoch), start, None)
        ahead = ([(epoch, index) for index in indices] for indices in numbered)
        self._ahead.batches = ahead
        try:
            yield from report_skipped(self._loader, self.skipped, self.strict)
        finally:
            ahead.close()  # it refers to this loader, whose processes end with it unless it is part of a cycle


def report_skipped(
    loader: DataLoader[tuple[Batch | None, list[str]]], skipped: list[str], strict: bool
) -> Iterator[Batch]:
    """The batches in what a loader process hands over; what it could not read goes to `skipped`, once each."""
    for batch, problems in loader:
        if problems and (strict or len(problems) >= MAX_UNREADABLE):
            raise ImageError(problems[0])
        skipped += [problem for problem in problems if problem not in skipped]
        if batch is not None:
            yield batch


def leave_signals_to_training(_: int) -> None:
    """In a loader process: leave it to the training process to act when a job is asked to stop, and end with it.

    SIGTERM to the process group does not reach a group of its own. Sent to the loader process itself it still ends it,
    as Python's own clean-up at exit needs.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for name in ("SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.excepthook = _silent_without_training
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    """End this process when its parent has ended; it might else wait for ever to be rid of a batch."""
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def _silent_without_training(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Report an error of a thread, but not that a training process which was killed does not answer."""
    training = multiprocessing.parent_process()
    if isinstance(error, (ConnectionError, EOFError)) and training is not None:
        training.join(timeout=1)  # its connections end before it does
        if not training.is_alive():
            return
    sys.__excepthook__(kind, error, trace)


class _Ahead:
    """The batch sampler: the batches that are left of an epoch."""

    def __init__(self) -> None:
        self.batches: Iterator[list[tuple[int, int]]] = iter(())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches


class _Drawn(Dataset[tuple[Any, list[str]]]):
    """Samples with their random draws seeded: (epoch, index) → (sample or None, what could not be read)."""

    def __init__(self, samples: Samples[Any], seed: int, replace: bool) -> None:
        self.samples, self.seed, self.replace = samples, seed, replace

    def __getitem__(self, position: tuple[int, int]) -> tuple[Any, list[str]]:
        epoch, index = position
        problems: list[str] = []
        with seeded(self.seed, epoch, index):
            for i in range(MAX_UNREADABLE if self.replace else 1):
                try:
                    return self.samples[(index + i) % len(self.samples)], problems
                except ImageError as error:
                    problems.append(str(error))
        return None, problems


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, drawn: list[tuple[Any, list[str]]]) -> tuple[Any, list[str]]:
        samples = [sample for sample, _ in drawn if sample is not None]
        problems = [problem for _, some in drawn for problem in some]
        return (self.collate(samples) if samples else None), problems
