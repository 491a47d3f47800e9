"""Trials of a search: each one a run of the training engine, ended early where it does worse than others."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from vmamba.errors import OptionError, VMambaError
from vmamba.progress import progress_bar, quiet, remark
from vmamba.tables import write_table
from vmamba.training.distributed import Processes
from vmamba.training.interruption import StopRequests
from vmamba.training.loop import train
from vmamba.training.nonfinite import Diverged
from vmamba.training.recipe import Recipe
from vmamba.tuning.space import applied
from vmamba.tuning.study import SharedStudy


def search(
    shared: SharedStudy, processes: Processes, stop: StopRequests, *, trials: int, seconds: float = math.inf
) -> None:
    """Work on trials until there are enough of them, or the time is up; one that is begun is finished.

    Args:
        shared: The study.
        processes: This process alone.
        stop: Requests to stop.
        trials: In the whole study, those of other processes included.
        seconds: For this process.

    Raises:
        VMambaError: If the default recipe itself cannot be run.
        Interrupted: After a request to stop, once the state of the trial is saved.
    """
    end = time.monotonic() + seconds
    with progress_bar("trials") as bar:
        task = bar.add_task("searching", total=trials)
        while time.monotonic() < end:
            with shared.take(trials) as trial:
                if trial is None:
                    return
                bar.update(task, completed=trial.number, description=f"trial {trial.number}")
                finished = _work_on(shared, trial, processes, stop)
            write_trials(shared)
            bar.update(task, completed=trial.number + 1)
            remark(f"trial {finished.number}/{trials - 1}: {_outcome(shared, finished)}")


def recipe_of(recipe: Recipe, trial: FrozenTrial | Trial) -> Recipe:
    """The recipe of a trial; trial 0 is the default as it stands."""
    return recipe if trial.number == 0 else applied(recipe, trial.params)


def write_trials(shared: SharedStudy) -> Path:
    """Write ``trials.csv``: number, state, value and settings of every trial."""
    rows = [
        [t.number, t.state.name.lower(), "" if t.value is None else t.value, *(t.params.get(n, "") for n in names)]
        for names in [list(shared.distributions)]
        for t in shared.study.get_trials(deepcopy=False)
        if t.state != TrialState.WAITING
    ]
    columns = ["trial", "state", shared.metric.name, *shared.distributions]
    return write_table(shared.folder / "trials.csv", columns, rows)


def _work_on(shared: SharedStudy, trial: Trial, processes: Processes, stop: StopRequests) -> FrozenTrial:
    """Run a trial, or go on with its run, and tell the study; only what is small remains of the run."""
    folder = shared.run_folder(trial.number)
    value, state = None, TrialState.COMPLETE
    try:
        with quiet():
            value = train(
                recipe_of(shared.recipe, trial),
                folder,
                processes,
                resume="auto",
                stop=stop,
                on_validation=_report_to(trial),
            ).best
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except Diverged:
        state = TrialState.PRUNED if trial.number else TrialState.FAIL
    except (OptionError, VMambaError) as error:
        if trial.number == 0:
            raise
        state = TrialState.FAIL
        remark(f"trial {trial.number} cannot be run: {error}")
    if state == TrialState.COMPLETE and (value is None or not math.isfinite(value)):
        state, value = TrialState.FAIL, None
    finished = shared.study.tell(trial, value, state, skip_if_finished=True)
    for part in ("checkpoints", "weights", "tensorboard"):
        shutil.rmtree(folder / part, ignore_errors=True)
    return finished


def _report_to(trial: Trial) -> Callable[[int, float | None], None]:
    """Report the best so far after each validation, and end the run where the pruner says so; never that of trial 0."""

    def report(epoch: int, best: float | None) -> None:
        known = trial.study._storage.get_trial(trial._trial_id).intermediate_values
        if best is not None and epoch not in known:
            trial.report(best, epoch)
        if trial.number and trial.should_prune():
            raise optuna.TrialPruned

    return report


def _outcome(shared: SharedStudy, trial: FrozenTrial) -> str:
    name = shared.metric.name
    if trial.state == TrialState.COMPLETE:
        best = shared.study.best_trial
        return f"{name} {trial.value:.2f}; best so far {best.value:.2f} of trial {best.number}"
    return {TrialState.PRUNED: "ended early", TrialState.FAIL: "failed"}[trial.state]
