"""Output of a run for people: lines, a progress bar, tables, TensorBoard."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from vmamba.data.summary import DataSummary
from vmamba.files import atomic_write, name_in_errors
from vmamba.progress import is_quiet, progress_bar, remark
from vmamba.tasks.spelling import spelled
from vmamba.terminal import console, sparkline
from vmamba.training.curves import draw_curves
from vmamba.training.tables import Table, read_table
from vmamba.training.trainer import Trainer


class SilentLog:
    """The log of all processes but the first: nothing is written."""

    def bar(self) -> AbstractContextManager[Any]:
        """Show the progress of training."""
        return nullcontext()

    def waiting(self) -> AbstractContextManager[Any]:
        """Count time as spent waiting for data."""
        return nullcontext()

    def step(self, losses: Mapping[str, float]) -> None:
        """Show a step, and write a row about every few."""

    def validation(self, results: Mapping[str, float]) -> None:
        """Write and print the results of a validation."""

    def skipped(self, names: Sequence[str]) -> None:
        """List unreadable images in ``skipped.txt``, and say so each time there are new ones."""

    def close(self) -> list[Path]:
        """Finish; the pictures that were drawn."""
        return []


class RunLog(SilentLog):
    """``steps.csv``, ``epochs.csv``, ``skipped.txt``, TensorBoard's files, and what is printed.

    Args:
        folder: Of the run.
        trainer: Where it begins or continues.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.folder, self.trainer = folder, trainer
        position, recipe = trainer.position, trainer.recipe
        self._rate = self._wait = 0.0
        self._skipped = 0
        self._restart_clock()
        validated = position.step - 1 if position.to_validate else position.step
        self._steps, self._epochs = Table(folder / "steps.csv", position.step), Table(folder / "epochs.csv", validated)
        for table in (self._steps, self._epochs):
            if table.problem is not None:
                say(table.problem)
        validated_so_far, _ = read_table(folder / "epochs.csv")
        metric = trainer.task.metric.name
        self._headlines = [float(row[metric]) for row in validated_so_far if row.get(metric)]
        self._losses: list[float] = []
        self._board = TensorBoard(folder / "tensorboard", position.step)
        self._bar = progress_bar("images")
        total = recipe.epochs * trainer.steps_per_epoch * recipe.batch_size
        self._task = self._bar.add_task("training", total=total, completed=position.step * recipe.batch_size)

    @contextmanager
    def bar(self) -> Iterator[None]:
        self._restart_clock()
        with self._bar:
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def step(self, losses: Mapping[str, float]) -> None:
        position, recipe = self.trainer.position, self.trainer.recipe
        last = position.step_in_epoch == self.trainer.steps_per_epoch
        memory = memory_gb(self.trainer.processes.device)
        self._images += recipe.batch_size
        course = sparkline(self._losses, sys.stderr)
        text = f"epoch {position.epoch + 1}/{recipe.epochs} loss {losses['loss']:.3f} {course} {memory:.1f} GB"
        self._bar.update(self._task, advance=recipe.batch_size, description=text)
        if position.step > 1 and position.step % recipe.log_every and not last:
            return
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        self._rate, self._wait = self._images / elapsed, self._waited / elapsed
        self._restart_clock()
        self._losses.append(losses["loss"])
        rates = {"images_per_second": self._rate, "data_wait": self._wait, "memory_gb": memory}
        values = {**losses, "lr": self.trainer.lr, **rates}
        epoch = position.epoch + position.step_in_epoch / self.trainer.steps_per_epoch
        self._steps.add({"step": position.step, "epoch": epoch, **values})
        self._board.add("training", values, position.step)

    def validation(self, results: Mapping[str, float]) -> None:
        position, metric = self.trainer.position, self.trainer.task.metric.name
        drawn = [name for name in self.trainer.task.metric.drawn if name in results]
        self._epochs.add({"step": position.step, "epoch": position.epoch, **results})
        self._board.add("validation", results, position.step)
        self._headlines.append(results[metric])
        headline = f"weights {results[metric]:.2f}"
        if f"ema_{metric}" in results:
            headline += f", average of weights {results[f'ema_{metric}']:.2f}"
        headline += "".join(f", {spelled(name)} {results[name]:.1f}" for name in drawn)
        if course := sparkline(self._headlines, sys.stdout):
            headline += f" {course}"
        rate = f" · {self._rate:,.0f} images/s, {self._wait:.0%} of the time waiting for data" if self._rate else ""
        say(f"epoch {position.epoch}/{self.trainer.recipe.epochs} · {spelled(metric)}: {headline}{rate}")

    def skipped(self, names: Sequence[str]) -> None:
        if len(names) > self._skipped:
            path = self.folder / "skipped.txt"
            with atomic_write(path) as file:
                file.writelines(f"{name}\n".encode(errors="surrogateescape") for name in names)
            say(f"vmamba: {len(names)} images could not be read and were left out; they are listed in {path}")
        self._skipped = len(names)

    def close(self) -> list[Path]:
        self._board.close()
        metric = self.trainer.task.metric
        picture = draw_curves(self.folder, metric.name, metric.drawn)
        return [picture] if picture else []

    def _restart_clock(self) -> None:
        self._images, self._waited, self._start = 0, 0.0, time.perf_counter()


class TensorBoard:
    """Scalars for TensorBoard; without the package `tensorboard` nothing is written.

    Args:
        folder: Where the event files go.
        step: Optimiser steps done; what an interrupted run wrote after them is hidden.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._folder = folder
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            with name_in_errors(self._folder):
                for name, value in values.items():
                    self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def say(text: str) -> None:
    """Print a line, unless it is to be quiet; what the terminal cannot show, or a reader that has gone, ends no run."""
    with suppress(OSError):
        try:
            remark(text)
        except UnicodeEncodeError:
            remark(text.encode("ascii", "backslashreplace").decode())


def show(summary: DataSummary) -> None:
    """Print what a data set holds."""
    if not is_quiet():
        with suppress(OSError, UnicodeEncodeError):
            summary.show(console())


def memory_gb(device: torch.device) -> float:
    """Peak memory so far, GiB: of the GPU, or of this process; NaN on systems that do not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
