"""Pictures of a run and of an evaluation; without matplotlib there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vmamba.errors import MissingPackageError
from vmamba.plots import COLOURS, figure, remove_frame
from vmamba.tasks.spelling import spelled
from vmamba.training.tables import read_table

BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]


def draw_curves(folder: Path, metric: str, drawn: Sequence[str] = ()) -> Path | None:
    """Draw ``curves.png`` from ``steps.csv`` and ``epochs.csv``; None without matplotlib or rows.

    Args:
        folder: Of the run.
        metric: Name of the headline.
        drawn: Names of further results, which may be there or not.
    """
    (steps, _), (epochs, _) = read_table(folder / "steps.csv"), read_table(folder / "epochs.csv")
    if not steps or not epochs:
        return None
    path = folder / "curves.png"
    names = [name for name in (metric, *drawn) if name in epochs[0] and name != "loss"]
    at_step, at_epoch = _column(steps, "epoch"), _column(epochs, "epoch")
    try:
        with figure(path, size=(4 * (len(names) + 2), 3.6), extra="train", dpi=130) as picture:
            left, *middle, right = picture.subplots(1, len(names) + 2)
            left.plot(at_step, _column(steps, "loss"), color=BLUE, linewidth=1, label="training")
            if "loss" in epochs[0]:
                left.plot(at_epoch, _column(epochs, "loss"), "o-", color=ORANGE, ms=3, label="validation")
                left.legend(frameon=False)
            left.set(xlabel="epoch", ylabel="loss", title="loss")
            for name, axis in zip(names, middle, strict=True):
                axis.plot(at_epoch, _column(epochs, name), "o-", color=ORANGE, ms=3, label="weights")
                if f"ema_{name}" in epochs[0]:
                    average = _column(epochs, f"ema_{name}")
                    axis.plot(at_epoch, average, "s--", color=GREEN, ms=3, label="their moving average")
                    axis.legend(frameon=False)
                axis.set(xlabel="epoch", ylabel=spelled(name), title=f"validation {spelled(name)}")
            right.plot(at_step, _column(steps, "lr"), color=PURPLE)
            right.set(xlabel="epoch", ylabel="learning rate", title="learning rate")
            for axis in (left, *middle, right):
                axis.grid(alpha=0.25)
                remove_frame(axis)
    except MissingPackageError:
        return None
    return path


def draw_sizes(rows: Sequence[Mapping[str, float]], metric: str, path: Path) -> Path | None:
    """Draw a metric and the throughput over the size of the input; None without matplotlib.

    Args:
        rows: With ``image_size``, ``images_per_second`` and the metric.
        metric: Its name.
        path: The picture.
    """
    sizes = [row["image_size"] for row in rows]
    try:
        with figure(path, size=(8, 3.4), extra="train", dpi=130) as picture:
            left, right = picture.subplots(1, 2)
            left.plot(sizes, [row[metric] for row in rows], "o-", color=BLUE)
            left.set(ylabel=spelled(metric), title="the same weights at other input sizes")
            right.plot(sizes, [row["images_per_second"] for row in rows], "o-", color=ORANGE)
            right.set(ylabel="images/s, loading included", title="throughput", yscale="log")
            for axis in (left, right):
                axis.set(xlabel="image size, pixels", xticks=sizes)
                axis.grid(alpha=0.25)
                remove_frame(axis)
    except MissingPackageError:
        return None
    return path


def _column(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    return [float(row[name]) if row.get(name) else float("nan") for row in rows]
