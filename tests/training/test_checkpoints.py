"""Checkpoints of a run: damage is noticed, nothing half-written stays."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from vmamba.errors import CheckpointError
from vmamba.training.checkpoints import Checkpoints, read_run_checkpoint
from vmamba.training.state import Position

STATE = {"model": {"weight": torch.arange(5000.0), "bias": torch.ones(3)}, "optimizer": {"lr": 0.1}}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def test_newest_few_are_kept(checkpoints: Checkpoints) -> None:
    for step in (9, 10, 11):
        checkpoints.save(STATE, Position(step), {"lr": step})
    assert [path.name for path in checkpoints.steps()] == ["step_00000010.pt", "step_00000011.pt"]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0] == checkpoints.steps()[-1]
    assert newest[1]["position"]["step"] == 11
    assert torch.equal(newest[1]["model"]["weight"], STATE["model"]["weight"])


def test_flipped_bits(checkpoints: Checkpoints) -> None:
    """Every flip is noticed, or is in a byte between the contents that means nothing."""
    path = checkpoints.save(STATE, Position(1), {})
    whole = path.read_bytes()
    draw = random.Random(0)
    noticed = 0
    for _ in range(200):
        spoilt = bytearray(whole)
        spoilt[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(spoilt)
        try:
            content = read_run_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
            noticed += 1
        else:
            assert torch.equal(content["model"]["weight"], STATE["model"]["weight"])
            assert torch.equal(content["model"]["bias"], STATE["model"]["bias"])
            assert content["position"]["step"] == 1
    assert noticed > 150


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_falls_back_to_the_one_before(checkpoints: Checkpoints, damage: str) -> None:
    checkpoints.save(STATE, Position(1), {})
    path = checkpoints.save(STATE, Position(2), {})
    spoilt = bytearray(path.read_bytes())
    spoilt[spoilt.index(STATE["model"]["weight"][4000:4010].numpy().tobytes())] ^= 1
    path.write_bytes({"flipped": spoilt, "truncated": spoilt[:9000], "empty": b""}[damage])
    newest = checkpoints.newest()
    assert newest is not None
    _, content, (problem,) = newest
    assert content["position"]["step"] == 1
    assert f"{path}: cannot read the checkpoint: " in problem
    checkpoints.steps()[0].write_bytes(b"no")
    with pytest.raises(CheckpointError, match="start again in another --output folder"):
        checkpoints.newest()


def test_validation_is_noted_beside(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(STATE, Position(8, 1, to_validate=True), {})
    assert checkpoints.read(path)["position"]["to_validate"]
    checkpoints.mark_validated(Position(8, 1, best=0.1 + 0.2), best=True)
    position = checkpoints.read(path)["position"]
    assert (position["best"], position["to_validate"]) == (0.1 + 0.2, False)
    assert (path.parent / "best.pt").samefile(path)
    later = checkpoints.save(STATE, Position(16, 2, to_validate=True), {})
    assert checkpoints.read(later)["position"]["to_validate"]
    (path.parent / "validated.json").write_bytes(b'{"step": 16, "be')
    assert checkpoints.read(later)["position"]["to_validate"]


def test_the_best_is_noted_twice(checkpoints: Checkpoints) -> None:
    """By a run that was killed in between: the second name is another one of the same file."""
    checkpoints.save(STATE, Position(1), {})
    for _ in range(2):
        checkpoints.mark_validated(Position(1, best=50.0), best=True)
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["best.pt", "step_00000001.pt", "validated.json"]


def test_file_system_without_links(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = checkpoints.save(STATE, Position(8, 1), {})
    checkpoints.mark_validated(Position(8, 1), best=True)
    assert (path.parent / "best.pt").read_bytes() == path.read_bytes()


def test_leftovers(checkpoints: Checkpoints) -> None:
    path = checkpoints.save(STATE, Position(1), {})
    for name in (".writing-step_00000002.pt.x1", ".step_00000002.pt.abc", ".best.pt.new", "notes.txt"):
        (path.parent / name).write_bytes(b"x")
    checkpoints.remove_leftovers()
    assert sorted(p.name for p in path.parent.iterdir()) == ["notes.txt", path.name]


def test_best_of_the_first_release(checkpoints: Checkpoints) -> None:
    """A checkpoint without the fields that came later."""
    path = checkpoints.folder / "step_00000004.pt"
    path.parent.mkdir()
    position = {"step": 4, "epoch": 1, "step_in_epoch": 0, "best": 50.0}
    torch.save({"format": 1, "recipe": {}, "position": position, **STATE}, path)
    assert Position(**checkpoints.read(path)["position"]) == Position(4, 1, 0, 50.0)
