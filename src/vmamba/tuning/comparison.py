"""The default and the winner once more, with fresh seeds, on images that the search has not seen if it can be."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmamba.progress import quiet
from vmamba.tables import read_csv, write_csv
from vmamba.tasks import task_class
from vmamba.tasks.protocol import Metric
from vmamba.tasks.spelling import spelled
from vmamba.training.distributed import Processes
from vmamba.training.evaluation import evaluate
from vmamba.training.interruption import StopRequests
from vmamba.training.loop import WEIGHTS, job_of, train
from vmamba.training.recipe import Recipe, override


@dataclass(frozen=True)
class Comparison:
    """Headline of the default and of the winner, seed by seed."""

    metric: Metric
    default: tuple[float, ...]
    winner: tuple[float, ...]

    @property
    def gains(self) -> tuple[float, ...]:
        """Gain of the winner with each seed; positive is better."""
        sign = 1 if self.metric.larger_is_better else -1
        return tuple(sign * (after - before) for before, after in zip(self.default, self.winner, strict=True))

    @property
    def better(self) -> bool:
        """True if the winner gains with every seed."""
        return min(self.gains) > 0

    def verdict(self) -> str:
        """A line for a person."""
        default, winner = (f"{statistics.mean(values):.2f}" for values in (self.default, self.winner))
        spread = f"{statistics.mean(self.gains):+.2f} ({min(self.gains):+.2f} to {max(self.gains):+.2f})"
        seeds = f"{len(self.gains)} fresh seeds"
        verdict = "better than the default with every seed" if self.better else "no better than the default"
        return f"{verdict}: {spelled(self.metric.name)} {winner} beside {default}, gain {spread} over {seeds}"


def compare(
    default: Recipe, winner: Recipe, seeds: Sequence[int], folder: Path, processes: Processes, stop: StopRequests
) -> Comparison:
    """Train both with every seed, or go on, and evaluate what each run exported as its best.

    Args:
        default: The recipe that the search began with.
        winner: That of the best trial.
        seeds: Such as the search has not used.
        folder: For the runs, and ``comparison.csv``.
        processes: This process alone.
        stop: Requests to stop.
    """
    path = folder / "comparison.csv"
    rows = read_csv(path) if path.exists() else []
    done = {(row["recipe"], int(row["seed"])): float(row["value"]) for row in rows}
    for seed in seeds:
        for name, recipe in (("default", default), ("winner", winner)):
            if (name, seed) in done:
                continue
            output = folder / f"{name}-{seed}"
            with quiet():
                train(recipe.replace(seed=seed), output, processes, resume="auto", stop=stop)
                done[name, seed] = _final(recipe, output, processes)
            metric = task_class(recipe.task).metric.name
            write_csv(path, [{"recipe": n, "seed": s, "metric": metric, "value": v} for (n, s), v in done.items()])
    values = [tuple(done[name, seed] for seed in seeds) for name in ("default", "winner")]
    return Comparison(task_class(default.task).metric, *values)


def has_third_split(recipe: Recipe) -> bool:
    """True where a search can validate on held-out training images and leave the validation split alone."""
    return recipe.task == "classification" and recipe.options.format != "shards" and not recipe.options.holdout


def _final(recipe: Recipe, output: Path, processes: Processes) -> float:
    """The headline of a run's best weights on the validation split."""
    weights = str(output / WEIGHTS / "model.safetensors")  # with what they are beside them
    changes: dict[str, object] = {"checkpoint": weights, "pretrained": False, "model": None, "model_options": {}}
    if recipe.task in ("lejepa", "simmim"):  # the backbone is all that is left, and the run has its headline
        return min(float(row["loss"]) for row in read_csv(output / "epochs.csv"))
    if recipe.task == "classification":
        changes["holdout"] = 0.0
    chosen = Recipe.of(override(recipe.as_dict(), {**changes, "keep_head": True, "grad_accum_steps": 1}))
    task = task_class(chosen.task)(job_of(chosen, processes), chosen.options)
    task.setup(training=False)
    results = evaluate(task, task.build_model().to(processes.device), task.val_loader(), processes)
    return results[task.metric.name]
