"""Pictures of a run and of an evaluation; without matplotlib there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmamba.training.tables import read_table


def draw_curves(folder: Path, metric: str) -> Path | None:
    """Draw ``curves.png`` from ``steps.csv`` and ``epochs.csv``; None without matplotlib or rows.

    Args:
        folder: Of the run.
        metric: Name of the headline.
    """
    plt = _pyplot()
    (steps, _), (epochs, _) = read_table(folder / "steps.csv"), read_table(folder / "epochs.csv")
    if plt is None or not steps or not epochs:
        return None
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    at_step, at_epoch = _column(steps, "epoch"), _column(epochs, "epoch")
    left.plot(at_step, _column(steps, "loss"), color="#0072B2", linewidth=1, label="training")
    if "loss" in epochs[0]:
        left.plot(at_epoch, _column(epochs, "loss"), "o-", color="#D55E00", ms=3, label="validation")
        left.legend(frameon=False)
    left.set(xlabel="epoch", ylabel="loss", title="loss")
    middle.plot(at_epoch, _column(epochs, metric), "o-", color="#D55E00", ms=3, label="weights")
    if f"ema_{metric}" in epochs[0]:
        average = _column(epochs, f"ema_{metric}")
        middle.plot(at_epoch, average, "s--", color="#009E73", ms=3, label="their moving average")
        middle.legend(frameon=False)
    middle.set(xlabel="epoch", ylabel=metric, title=f"validation {metric}")
    right.plot(at_step, _column(steps, "lr"), color="#CC79A7")
    right.set(xlabel="epoch", ylabel="learning rate", title="learning rate")
    return _save(plt, figure, (left, middle, right), folder / "curves.png")


def draw_sizes(rows: Sequence[Mapping[str, float]], metric: str, path: Path) -> Path | None:
    """Draw a metric and the throughput over the size of the input; None without matplotlib.

    Args:
        rows: With ``image_size``, ``images_per_second`` and the metric.
        metric: Its name.
        path: The picture.
    """
    plt = _pyplot()
    if plt is None:
        return None
    sizes = [row["image_size"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    left.plot(sizes, [row[metric] for row in rows], "o-", color="#0072B2")
    left.set(ylabel=metric, title="the same weights at other input sizes")
    right.plot(sizes, [row["images_per_second"] for row in rows], "o-", color="#D55E00")
    right.set(ylabel="images/s, loading included", title="throughput", yscale="log")
    for axis in (left, right):
        axis.set(xlabel="image size, pixels", xticks=sizes)
    return _save(plt, figure, (left, right), path)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(plt: Any, figure: Any, axes: Sequence[Any], path: Path) -> Path:
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _column(rows: Sequence[Mapping[str, str]], name: str) -> list[float]:
    return [float(row[name]) if row.get(name) else float("nan") for row in rows]
