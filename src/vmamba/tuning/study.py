"""A search on disk that several processes carry on, on one machine or many, and that any may leave at any time.

Optuna's journal holds the trials. Who works on a trial holds a lock on it, which the system frees when the process
dies: a trial that runs and is not locked has been left, and is continued from its last checkpoint by whoever sees it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vmamba.errors import MissingPackageError, OptionError
from vmamba.files import lock
from vmamba.tasks.protocol import Metric
from vmamba.training.recipe import Recipe, differences
from vmamba.tuning.space import Choice, Range, Space, current_value

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError:
    raise MissingPackageError("optuna", "tune") from None

#: Trials at random before the sampler begins to learn, and before any is ended early.
STARTUP_TRIALS = 8


class SharedStudy:
    """The study in a folder, opened or begun.

    Attributes:
        study: Optuna's.
        folder: Holds the journal, the locks and the trials' runs.

    Args:
        folder: See above; made where there is none.
        recipe: The default, which trial 0 is.
        space: What is tried.
        metric: The headline.

    Raises:
        OptionError: If the folder holds a search of another recipe or space.
    """

    def __init__(self, folder: Path, recipe: Recipe, space: Space, metric: Metric) -> None:
        self.folder, self.recipe, self.metric = folder, recipe, metric
        self.distributions = {name: _distribution(dimension) for name, dimension in space.items()}
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        path = str(folder / "journal.log")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental in Optuna
            storage = JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path)))
            with self._locked():
                self.study = optuna.create_study(
                    storage=storage,
                    study_name="vmamba",
                    direction="maximize" if metric.larger_is_better else "minimize",
                    pruner=optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=max(1, recipe.epochs // 4)),
                    load_if_exists=True,
                )
                self._begin(space)

    def _begin(self, space: Space) -> None:
        described = json.dumps({name: _described(dimension) for name, dimension in space.items()}, sort_keys=True)
        attributes = self.study.user_attrs
        if not attributes:
            self.study.set_user_attr("recipe", self.recipe.as_dict())
            self.study.set_user_attr("space", described)
            self.study.enqueue_trial({name: current_value(self.recipe, name) for name in space})
            return
        changed = differences(attributes["recipe"], self.recipe)
        if changed:
            listed = "; ".join(f"{name}: {was} there, {now} now" for name, (was, now) in list(changed.items())[:3])
            raise OptionError(f"{self.folder}: holds a search from another recipe ({listed}); name another --output")
        if attributes["space"] != described:
            raise OptionError(f"{self.folder}: holds a search in another space; name another --output")

    @contextmanager
    def take(self, limit: int) -> Iterator[Trial | None]:
        """A trial to work on, locked: one that was left, or a new one; None where there are `limit` already."""
        with self._locked():
            trial, held = self._left() or self._new(limit)
        if trial is None:
            yield None
            return
        try:
            yield trial
        finally:
            held.__exit__(None, None, None)

    def running(self) -> int:
        """Trials that somebody works on."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def run_folder(self, number: int) -> Path:
        """Folder of a trial's run."""
        return self.folder / "trials" / f"{number:04d}"

    def completed(self) -> list[FrozenTrial]:
        """Trials with a value."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _left(self) -> tuple[Trial | None, Any] | None:
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            held = self._lock(frozen.number)
            if held is not None:
                return Trial(self.study, frozen._trial_id), held
        return None

    def _new(self, limit: int) -> tuple[Trial | None, Any]:
        begun = [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
        if len(begun) >= limit:
            return None, None
        # Drawn from the seed and the number, so that processes draw different ones and a search can be repeated.
        seed = (self.recipe.seed * 1_000_003 + len(begun)) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed
            )
            trial = self.study.ask(self.distributions)
        return trial, self._lock(trial.number)

    def _lock(self, number: int) -> Any:
        """The lock of a trial, held, or None if somebody else holds it."""
        held = lock(self.folder / "locks" / f"{number:04d}", "")
        with suppress(OptionError):
            held.__enter__()
            return held
        return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with lock(self.folder / "locks" / "study", f"{self.folder}: another search does not let go of it", 300):
            yield


def _distribution(dimension: Range | Choice) -> Any:
    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if dimension.integer:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _described(dimension: Range | Choice) -> Any:
    return list(dimension.values) if isinstance(dimension, Choice) else dimension.model_dump()


def parameters_of(trial: FrozenTrial | Trial) -> Mapping[str, Any]:
    """Settings of a trial."""
    parameters: Mapping[str, Any] = trial.params
    return parameters
