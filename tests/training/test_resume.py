"""A run that was stopped continues as if it had not been."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.runs import STEPS, assert_identical, last_state, losses, read_rows, wait_for_step
from vmamba.cli.train import INTERRUPTED
from vmamba.errors import TrainingError
from vmamba.tasks.classification.task import Classification
from vmamba.training.checkpoints import Checkpoints
from vmamba.training.log import RunLog
from vmamba.training.loop import Run
from vmamba.training.state import Position
from vmamba.training.trainer import Trainer

pytestmark = pytest.mark.slow

Train = Callable[..., int]


@pytest.fixture(scope="module")
def uninterrupted(images: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the others are compared with."""
    from vmamba.cli import main

    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    command = ["train", "--recipe", recipe, "--data", images, "--output", output, "--device", "cpu"]
    assert main([str(a) for a in command]) == 0
    return output


def same(one: Path, other: Path) -> None:
    assert_identical(last_state(one), last_state(other))
    assert losses(one) == losses(other)
    assert len(losses(one)) == 3 * STEPS


def test_killed_in_the_middle_of_an_epoch(train: Train, launch: Any, uninterrupted: Path, tmp_path: Path) -> None:
    """With loader processes, which change nothing either."""
    process = launch(tmp_path / "run", "--workers", 2)
    wait_for_step(process, tmp_path / "run", STEPS + 5)
    process.kill()
    process.wait()
    position = last_state(tmp_path / "run")["position"]
    assert 0 < position["step"] < 3 * STEPS
    assert train(tmp_path / "run", "--resume", "auto", "--workers", 1) == 0
    same(tmp_path / "run", uninterrupted)


def test_terminated(train: Train, launch: Any, uninterrupted: Path, tmp_path: Path) -> None:
    """As `timeout` and torchrun do it: the process group is told, with loader processes at work."""
    process = launch(tmp_path / "run", "--workers", 2, "--set", "save_every=null")
    wait_for_step(process, tmp_path / "run", 4)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "continue with --resume auto" in err
    assert len(err.splitlines()) == 1
    step = last_state(tmp_path / "run")["position"]["step"]
    assert step >= 4
    assert train(tmp_path / "run", "--resume", "auto") == 0
    same(tmp_path / "run", uninterrupted)


def test_prolonged(train: Train, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run goes on where it was, on the schedule of the longer run; a shorter one is refused."""
    output = tmp_path / "run"
    assert train(output, "--epochs", 2) == 0
    assert train(output, "--epochs", 1, "--set", "warmup_epochs=0", "--resume", "auto") == 2
    assert "belongs to another recipe (epochs: 2 there, 1 now; warmup_epochs: 1.0 there, 0.0 now)" in (
        capsys.readouterr().err
    )
    assert train(output) == 2
    assert "prolong it with more --epochs and --resume auto" in capsys.readouterr().err
    weights = last_state(output)["model"]
    assert train(output, "--resume", "auto") == 0
    said = "prolonged from 2 to 3 epochs; from here on the learning rate follows the longer schedule"
    assert said in capsys.readouterr().out
    rows, others = read_rows(output / "steps.csv"), read_rows(uninterrupted / "steps.csv")
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    assert [row["lr"] for row in rows[2 * STEPS :]] == [row["lr"] for row in others[2 * STEPS :]]
    assert rows[2 * STEPS - 1]["lr"] != others[2 * STEPS - 1]["lr"]
    assert any(not torch.equal(weights[name], tensor) for name, tensor in last_state(output)["model"].items())
    assert "epochs: 3" in (output / "recipe.yaml").read_text()
    assert train(output, "--resume", "auto") == 0  # finished: nothing to do


def test_two_runs_in_one_folder(
    train: Train, launch: Any, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second ends in one line, the first as if there had been none."""
    process = launch(tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 2)
    for arguments in ((), ("--resume", "auto")):
        assert train(tmp_path / "run", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("run: another vmamba train is writing here; wait for it, or name another --output")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    same(tmp_path / "run", uninterrupted)


def test_terminated_before_the_first_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Classification, "train_loader", lambda _: signal.raise_signal(signal.SIGTERM))
    assert train(tmp_path / "run") == INTERRUPTED
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "vmamba: stopped before the first step; give the same command again"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("moment", ["_evaluate_candidates", "close"])
def test_terminated_between_epochs(
    train: Train, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """While validating: at once, and validated on resuming. While the curves are drawn: the run is done."""
    owner = Run if moment == "_evaluate_candidates" else RunLog
    method, calls = getattr(owner, moment), 0

    def warned(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or moment == "close":
            signal.raise_signal(signal.SIGTERM)
        return method(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, warned)
        assert train(tmp_path / "run") == (0 if moment == "close" else INTERRUPTED)
    if moment != "close":
        assert last_state(tmp_path / "run")["position"]["to_validate"]
        assert len(read_rows(tmp_path / "run" / "epochs.csv")) == 1
    assert train(tmp_path / "run", "--resume", "auto") == 0
    same(tmp_path / "run", uninterrupted)
    rows, others = (read_rows(folder / "epochs.csv") for folder in (tmp_path / "run", uninterrupted))
    assert [(row["step"], row["top1"], row["ema_top1"]) for row in rows] == [
        (row["step"], row["top1"], row["ema_top1"]) for row in others
    ]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
def test_warned(
    train: Train, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A cluster's warning, and a person's Ctrl-C: here raised inside the eleventh step."""
    step = Trainer.step

    def warned(run: Trainer, *arguments: Any) -> Any:
        if run.position.step == 10:
            signal.raise_signal(number)
        return step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", warned)
        assert train(tmp_path / "run") == INTERRUPTED
    assert last_state(tmp_path / "run")["position"]["step"] == 11
    assert train(tmp_path / "run", "--resume", "auto") == 0
    same(tmp_path / "run", uninterrupted)


def test_epochs_that_are_not_validated(
    train: Train, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved only where the last checkpoint is old; a run that ends on one goes on from there, and nothing is lost."""
    saved: list[int] = []
    save = Checkpoints.save

    def noted(self: Checkpoints, state: Any, position: Position, recipe: Any) -> Path:
        saved.append(position.step)
        return save(self, state, position, recipe)

    options = ("--set", "save_every=null", "validate_every=3")
    monkeypatch.setattr(Checkpoints, "save", noted)
    step = Trainer.step

    def killed(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.position.step == 2 * STEPS + 3:
            raise TrainingError("as if killed")
        return step(trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        assert train(tmp_path / "run", *options) == 2
    assert saved == [STEPS]
    assert train(tmp_path / "run", *options, "--resume", "auto") == 0
    assert saved == [STEPS, 3 * STEPS]
    same(tmp_path / "run", uninterrupted)
    saved.clear()
    monkeypatch.setattr("vmamba.training.loop.SAVE_SECONDS", 0.0)
    assert train(tmp_path / "old", *options) == 0
    assert saved == [STEPS, 2 * STEPS, 3 * STEPS]
