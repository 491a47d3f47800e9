"""The study on disk: shared, continued, never mixed with another; and the verdict of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from vmamba.errors import OptionError
from vmamba.tasks.protocol import Metric
from vmamba.training.recipe import Recipe
from vmamba.training.recipe_files import load_recipe
from vmamba.tuning.comparison import Comparison
from vmamba.tuning.pictures import draw_search, importance
from vmamba.tuning.search import recipe_of
from vmamba.tuning.space import Range
from vmamba.tuning.study import SharedStudy

SPACE = {"lr": Range(low=1e-4, high=1e-1, log=True), "hflip": Range(low=0.0, high=1.0)}
TOP1 = Metric("top1")


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("scratch", {"data": "somewhere", "model": "vmamba_pico"})


def opened(folder: Path, recipe: Recipe) -> SharedStudy:
    return SharedStudy(folder, recipe, SPACE, TOP1)


def test_trial_0_is_the_default(recipe: Recipe, tmp_path: Path) -> None:
    shared = opened(tmp_path, recipe)
    with shared.take(5) as trial:
        assert trial is not None
        assert trial.number == 0
        assert trial.params == {"lr": 3e-3, "hflip": 0.0}
        assert recipe_of(recipe, trial) is recipe
    assert recipe_of(recipe, trial).lr == 3e-3


def test_two_processes_share_a_study(recipe: Recipe, tmp_path: Path) -> None:
    """Each takes a trial of its own, with settings of its own; together they do as many as are asked for."""
    one, other = opened(tmp_path, recipe), opened(tmp_path, recipe)
    with one.take(3) as first, other.take(3) as second, one.take(3) as third, other.take(3) as fourth:
        assert first is not None
        assert second is not None
        assert third is not None
        assert [first.number, second.number, third.number] == [0, 1, 2]
        assert second.params != third.params
        assert fourth is None
        assert other.running() == 3
        first.report(50.0, 1)
        one.study.tell(first, 60.0)
    assert [trial.value for trial in other.completed()] == [60.0]


def test_a_trial_that_was_left_is_taken_up(recipe: Recipe, tmp_path: Path) -> None:
    """Its lock is free and it is still running: the same settings and reports, before any new trial."""
    with opened(tmp_path, recipe).take(9) as left:
        assert left is not None
        left.report(42.0, 3)
    with opened(tmp_path, recipe).take(9) as again:
        assert again is not None
        assert (again.number, again.params) == (left.number, left.params)
        assert again.study.get_trials()[0].intermediate_values == {3: 42.0}


def test_repeatable(recipe: Recipe, tmp_path: Path) -> None:
    """The same seed draws the same trials."""
    drawn = []
    for name in ("one", "other"):
        shared = opened(tmp_path / name, recipe)
        for _ in range(12):
            with shared.take(12) as trial:
                assert trial is not None
                shared.study.tell(trial, -abs(trial.params["hflip"] - 0.3))
        drawn.append([trial.params for trial in shared.study.trials])
    assert drawn[0] == drawn[1]
    assert len({str(parameters) for parameters in drawn[0]}) == 12


def test_another_search_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    opened(tmp_path, recipe)
    with pytest.raises(OptionError, match=r"holds a search from another recipe \(lr: 0.003 there, 0.1 now\)"):
        opened(tmp_path, recipe.replace(lr=0.1))
    with pytest.raises(OptionError, match="holds a search in another space"):
        SharedStudy(tmp_path, recipe, {"lr": SPACE["lr"]}, TOP1)


def test_importance_and_picture(recipe: Recipe, tmp_path: Path) -> None:
    """All of the variance comes from one setting."""
    shared = opened(tmp_path, recipe)
    assert importance(shared) == {}
    for _ in range(20):
        with shared.take(20) as trial:
            assert trial is not None
            shared.study.tell(trial, trial.params["hflip"])
    matters = importance(shared)
    assert next(iter(matters)) == "hflip"
    assert matters["hflip"] > 0.8
    assert draw_search(shared, tmp_path / "search.png").stat().st_size > 5000
    assert len(shared.completed()) == 20
    assert all(trial.state == TrialState.COMPLETE for trial in shared.study.trials)


def test_verdict() -> None:
    better = Comparison(TOP1, (90.0, 91.0, 92.0), (92.0, 91.5, 95.0))
    assert better.better
    gain = "top-1 92.83 beside 91.00, gain +1.83 (+0.50 to +3.00) over 3 fresh seeds"
    assert better.verdict() == f"better than the default with every seed: {gain}"
    assert "no better than the default" in Comparison(TOP1, (90.0, 91.0), (95.0, 90.5)).verdict()
    assert Comparison(Metric("loss", larger_is_better=False), (2.0, 3.0), (1.0, 2.5)).gains == (1.0, 0.5)
