"""``vmamba tune`` on images of four colours: two processes, one killed, and the comparison at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.runs import write_images
from vmamba.cli import main
from vmamba.files import lock
from vmamba.tables import read_csv
from vmamba.training.recipe_files import load_recipe

pytestmark = pytest.mark.slow

SMALL = ("model_options={dims: [8, 16, 24, 32], depths: [1, 1, 1, 1]}", "image_size=32", "batch_size=16", "workers=0")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    for split, count in (("train", 20), ("val", 6)):
        write_images(tmp_path / "images", split, count)
    parts: list[Any] = ["tune", "--data", tmp_path / "images", "--model", "vmamba_pico", "--output", tmp_path / "tune"]
    parts += ["--device", "cpu", "--set", *SMALL, "epochs=3", "warmup_epochs=0", "lr=1e-7", "save_every=1"]
    return [str(part) for part in parts]


def started(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "vmamba", *command], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_killed_and_shared(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process is killed in the midst of a trial; two others finish it and the rest, and no trial is lost."""
    command = [*command, "--trials", "6", "--seeds", "2"]
    killed = started(command)
    steps = tmp_path / "tune" / "trials" / "0001" / "steps.csv"
    end = time.monotonic() + 200
    while not (steps.is_file() and len(steps.read_text().splitlines()) > 1):
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    other = started(command)
    assert main(command) == 0
    out, err = other.communicate(timeout=300)
    assert other.returncode == 0, f"{out}\n{err}"
    printed = capsys.readouterr().out + out
    trials = read_csv(tmp_path / "tune" / "trials.csv")
    assert [int(row["trial"]) for row in trials] == list(range(6))
    assert {row["state"] for row in trials} <= {"complete", "pruned"}
    assert trials[0]["lr"] == "1e-07"
    assert float(trials[0]["top1"]) < 60  # nothing is learnt at this rate
    assert max(float(row["top1"] or 0) for row in trials) > 90
    assert "on the validation split, which the search has not seen: better than the default with every seed" in printed
    best = load_recipe(str(tmp_path / "tune" / "best.yaml"))
    assert best.lr > 1e-6
    assert best.options.holdout == 0
    assert (tmp_path / "tune" / "search.png").is_file()
    rows = read_csv(next((tmp_path / "tune").glob("comparison-*")) / "comparison.csv")
    assert {(row["recipe"], row["seed"]) for row in rows} == {(n, s) for n in ("default", "winner") for s in "12"}
    assert not list((tmp_path / "tune" / "trials").glob("*/checkpoints"))
    with lock(tmp_path / "tune" / "locks" / "comparison", "held by this test"):
        assert main(command) == 0
    assert "another process is comparing; nothing is left to do here" in "".join(capsys.readouterr())


def test_errors(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--hours", "0"]) == 2
    assert "--hours must be above 0" in capsys.readouterr().err
    assert main([*command, "--space", str(tmp_path / "none.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([*command[:-4], "lr=1", "optimizer=nothing"]) == 2
    assert "optimizer 'nothing'" in capsys.readouterr().err
