"""The picture of a search: its course, and how much each setting matters."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna

from vmamba.plots import COLOURS, figure, remove_frame
from vmamba.tasks.spelling import spelled
from vmamba.tuning.study import SharedStudy

#: Trials with a value below which nothing is said about importance.
ENOUGH = 5


def draw_search(shared: SharedStudy, path: Path) -> Path:
    """Draw the value of every trial, the best so far, and the importance of the settings.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    completed = sorted(shared.completed(), key=lambda trial: trial.number)
    values = [float(trial.value) for trial in completed if trial.value is not None]
    pick = max if shared.metric.larger_is_better else min
    best = [pick(values[: i + 1]) for i in range(len(values))]
    matters = importance(shared)
    with figure(path, size=(10, 3.6), extra="tune", dpi=130) as picture:
        left, right = picture.subplots(1, 2)
        numbers = [trial.number for trial in completed]
        left.plot(numbers, values, "o", ms=4, color=COLOURS[0], label="trial")
        left.plot(numbers, best, "-", color=COLOURS[1], label="best so far")
        left.set(xlabel="trial (0 is the default)", ylabel=spelled(shared.metric.name), title="search")
        left.legend(frameon=False)
        left.grid(alpha=0.25)
        right.barh(list(matters)[::-1], list(matters.values())[::-1], color=COLOURS[2])
        right.set(xlabel="part of the variance", title="importance" if matters else "importance: too few trials")
        for axis in (left, right):
            remove_frame(axis)
    return path


def importance(shared: SharedStudy) -> dict[str, float]:
    """Setting → part of the variance of the trials' values that it explains (fANOVA), largest first.

    Empty where there are too few trials, or all have one value.
    """
    if len(shared.completed()) < ENOUGH:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return dict(optuna.importance.get_param_importances(shared.study, evaluator=evaluator))
    except (ImportError, RuntimeError, ValueError):  # without scikit-learn; values that do not differ
        return {}
