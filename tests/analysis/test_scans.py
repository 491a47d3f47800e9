"""The study trains what it says, alike."""

from __future__ import annotations

import pytest
import torch

from vmamba.analysis.scans import PATTERNS, TASKS, Outcome, Task, accuracy, summary, train, untrained
from vmamba.data.pathfinder import pathfinder


@pytest.fixture
def easy() -> Task:
    """Is the image bright or dark?"""
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 32, 32) * 0.1 + (2.0 * labels - 1)[:, None, None, None]
    return Task(images[:48], labels[:48], {"easy": (images[48:], labels[48:])}, symmetric=True)


def test_patterns_start_alike(easy: Task) -> None:
    first, *others = [dict(untrained(scan, easy, seed=3).named_parameters()) for scan in PATTERNS]
    for other in others:
        assert other.keys() == first.keys()
        for name, value in other.items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("scan", PATTERNS)
def test_training_learns_and_repeats(easy: Task, scan: str) -> None:
    runs = []
    for _ in range(2):
        model = untrained(scan, easy, seed=0)
        runs.append((list(train(model, easy, steps=6, seed=0)), accuracy(model, easy.tests["easy"])))
        assert not model.training
    assert runs[0] == runs[1]
    losses, found = runs[0]
    assert losses[-1] < losses[0]
    assert found == 1.0


@pytest.mark.parametrize(("name", "classes", "size"), [("direction", 4, 48), ("pathfinder", 2, 48), ("digits", 10, 32)])
def test_tasks(name: str, classes: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.analysis.scans.pathfinder", lambda _, seed: pathfinder(40, seed=seed))
    task = TASKS[name]()
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
    assert (rows[0]["mean"], rows[0]["deviation"], rows[0]["least"], rows[0]["most"]) == (85.0, 7.07, 80.0, 90.0)
    assert (rows[3]["seeds"], rows[3]["mean"]) == (1, 25.0)
