"""What a run leaves for people: tables (CSV), TensorBoard, a picture of the learning curves."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Table:
    """A CSV file that grows row by row and survives an interruption.

    Args:
        path: The file. Rows of an earlier part of the run are kept up to `step`, those after it are dropped.
        step: Optimiser steps done.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_table(path) if int(row["step"]) <= step] if step else []
        self.columns = list(rows[0]) if rows else []
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            if rows:
                writer = csv.DictWriter(file, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        os.replace(temporary, path)

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row; the first one names the columns, later ones may leave some out."""
        first = not self.columns
        self.columns = self.columns or list(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n", extrasaction="ignore")
            if first:
                writer.writeheader()
            writer.writerow({name: f"{value:.8g}" for name, value in row.items()})


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a `Table`; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TensorBoard:
    """Scalars for TensorBoard; without the package `tensorboard` nothing is written.

    Args:
        folder: Where the event files go.
        step: Optimiser steps done; what an interrupted run wrote after them is hidden.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, group: str, values: Mapping[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def draw_curves(folder: Path, metric: str) -> Path | None:
    """Draw ``curves.png`` from ``steps.csv`` and ``epochs.csv``; None without matplotlib.

    Args:
        folder: Of the run.
        metric: Name of the headline.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps, epochs = read_table(folder / "steps.csv"), read_table(folder / "epochs.csv")
    if not steps or not epochs:
        return None
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    when = [float(row["epoch"]) for row in steps]
    left.plot(when, _column(steps, "loss"), color="#0072B2", linewidth=1, label="training")
    if "loss" in epochs[0]:
        left.plot(_column(epochs, "epoch"), _column(epochs, "loss"), "o-", color="#D55E00", ms=3, label="validation")
        left.legend(frameon=False)
    left.set(xlabel="epoch", ylabel="loss", title="loss")
    middle.plot(_column(epochs, "epoch"), _column(epochs, metric), "o-", color="#D55E00", ms=3, label="weights")
    average = f"ema_{metric}"
    if average in epochs[0]:
        when_averaged = _column(epochs, "epoch")
        middle.plot(when_averaged, _column(epochs, average), "s--", color="#009E73", ms=3, label="their moving average")
        middle.legend(frameon=False)
    middle.set(xlabel="epoch", ylabel=metric, title=f"validation {metric}")
    right.plot(when, _column(steps, "lr"), color="#CC79A7")
    right.set(xlabel="epoch", ylabel="learning rate", title="learning rate")
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path = folder / "curves.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) if row.get(name) else float("nan") for row in rows]
