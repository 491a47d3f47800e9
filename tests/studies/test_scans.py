"""The study trains what it says, alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.runs import read_rows
from vmamba.data.pathfinder import pathfinder
from vmamba.errors import CheckpointError
from vmamba.studies.problems import PROBLEMS, Problem
from vmamba.studies.scans import PATTERNS, Outcome, ScanOptions, ScanTask, accuracy, summary, train_pattern

pytestmark = pytest.mark.slow


@pytest.fixture
def easy() -> Problem:
    """Is the image bright or dark?"""
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 32, 32) * 0.1 + (2.0 * labels - 1)[:, None, None, None]
    return Problem(images[:48], labels[:48], {"easy": (images[48:], labels[48:])}, symmetric=True)


def options(scan: str, steps: int = 6) -> ScanOptions:
    return ScanOptions(problem="easy", scan=scan, steps=steps)


def test_patterns_start_alike_and_see_the_same(easy: Problem) -> None:
    tasks = [ScanTask(easy, options(scan), seed=3) for scan in PATTERNS]
    models = []
    for task in tasks:
        torch.manual_seed(3)
        models.append(dict(task.build_model().named_parameters()))
    for other in models[1:]:
        assert other.keys() == models[0].keys()
        for name, value in other.items():
            assert torch.equal(value, models[0][name]), name
    first, *others = [list(task.train_loader().batches(0)) for task in tasks]
    assert len(first) == len(tasks[0].train_loader()) == 6
    for other_batches in others:
        assert all(torch.equal(one.images, two.images) for one, two in zip(first, other_batches, strict=True))
    (late,) = tasks[0].train_loader().batches(0, start=5)
    assert torch.equal(late.images, first[5].images)
    assert torch.equal(late.labels, first[5].labels)


@pytest.mark.parametrize("scan", PATTERNS)
def test_training_learns_and_repeats(easy: Problem, scan: str, tmp_path: Path) -> None:
    one, two = (train_pattern(easy, options(scan), 0, tmp_path / name) for name in "ab")
    assert one.config.scan == scan
    assert not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    losses = [float(row["loss"]) for row in read_rows(tmp_path / "a" / "steps.csv")]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert accuracy(one, easy.tests["easy"]) == 1.0


def test_a_finished_run_is_not_run_again(easy: Problem, tmp_path: Path) -> None:
    train_pattern(easy, options("cross"), 0, tmp_path / "run")
    written = (tmp_path / "run" / "weights" / "model.safetensors").stat().st_mtime_ns
    train_pattern(easy, options("cross"), 0, tmp_path / "run")
    assert (tmp_path / "run" / "weights" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(CheckpointError, match=r"another recipe .*options\.steps: 6 there, 7 now"):
        train_pattern(easy, options("cross", 7), 0, tmp_path / "run")


@pytest.mark.parametrize(("name", "classes", "size"), [("direction", 4, 48), ("pathfinder", 2, 48), ("digits", 10, 32)])
def test_tasks(name: str, classes: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.studies.problems.pathfinder", lambda _, seed: pathfinder(40, seed=seed))
    task = PROBLEMS[name]()
    assert task.classes == classes
    assert task.images.shape[1:] == task.tests[name][0].shape[1:] == (3, size, size)
    for images, labels in ((task.images, task.labels), *task.tests.values()):
        assert len(images) == len(labels)
        assert images.dtype == torch.float32
        assert images.abs().max() < 4
    seen = {image.numpy().tobytes() for image in task.images}
    if name != "digits":
        assert not any(image.numpy().tobytes() in seen for image in task.tests[name][0])


def test_summary() -> None:
    values = {("a", "cross"): (0.9, 0.8), ("b", "cross"): (0.4, 0.6), ("a", "cascade"): (0.5, 0.5)}
    outcomes = [Outcome(test, scan, seed, v) for (test, scan), both in values.items() for seed, v in enumerate(both)]
    outcomes.append(Outcome("b", "cascade", 0, 0.25))
    rows = summary(outcomes)
    assert [(row["test"], row["scan"]) for row in rows] == [
        ("a", "cross"),
        ("a", "cascade"),
        ("b", "cross"),
        ("b", "cascade"),
    ]
    assert (rows[0]["mean"], rows[0]["deviation"], rows[0]["min"], rows[0]["max"]) == (85.0, 7.07, 80.0, 90.0)
    assert (rows[3]["seeds"], rows[3]["mean"]) == (1, 25.0)
