"""Several processes and several machines (on loopback) compute what one process does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.forked import Process
from support.runs import STEPS, children, free_port, last_state, losses, read_rows, tensors, wait_for_step

pytestmark = pytest.mark.slow

Train = Callable[..., int]

# What is drawn per process (dropped paths, mixing within a batch) is off: the rest must not depend on their number.
SAME = ("--set", "mixup=0", "cutmix=0", "model_options={dims: [8, 16, 24, 32], depths: [1, 1, 1, 1]}", "epochs=2")
ACCUMULATED = "grad_accum_steps=2"
TWO = ("--standalone", "--nproc-per-node", 2)


@pytest.fixture(scope="module")
def alone(images: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process."""
    from vmamba.cli import main

    output = tmp_path_factory.mktemp("alone") / "run"
    command = ["train", "--recipe", recipe, "--data", images, "--output", output, "--device", "cpu", *SAME]
    assert main([str(a) for a in command]) == 0
    return output


def assert_same_curves(one: Path, other: Path) -> None:
    assert len(losses(one)) == 2 * STEPS
    assert losses(one) == pytest.approx(losses(other), rel=2e-3)
    a, b = tensors(last_state(one)["model"]), tensors(last_state(other)["model"])
    assert a.keys() == b.keys()
    for name, weights in a.items():
        torch.testing.assert_close(weights, b[name], rtol=0.02, atol=0.002, msg=name)
    first, second = read_rows(one / "epochs.csv"), read_rows(other / "epochs.csv")
    for row, same in zip(first, second, strict=True):
        assert int(row["images"]) == int(same["images"]) == 16  # every validation image once
        assert float(row["loss"]) == pytest.approx(float(same["loss"]), rel=1e-3)


def finish(process: Process) -> None:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, f"{out}\n{err}"


def test_two_nodes(launch: Any, alone: Path, tmp_path: Path) -> None:
    """With two accumulated passes, which change nothing either."""
    port = free_port()
    common = ("--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1", "--master-port", port)
    nodes = [launch(tmp_path / "run", *SAME, ACCUMULATED, torchrun=(*common, "--node-rank", rank)) for rank in (0, 1)]
    for node in nodes:
        finish(node)
    assert_same_curves(tmp_path / "run", alone)


def test_sharded_state_continues_in_one_process(train: Train, launch: Any, alone: Path, tmp_path: Path) -> None:
    """Sharded for an epoch with its validation and some steps, each of two accumulated passes."""
    process = launch(tmp_path / "run", *SAME, "distribution=fsdp", ACCUMULATED, torchrun=TWO)
    wait_for_step(process, tmp_path / "run", STEPS + 2)
    process.terminate()
    process.communicate(timeout=60)
    assert STEPS + 2 <= last_state(tmp_path / "run")["position"]["step"] < 2 * STEPS
    assert train(tmp_path / "run", *SAME, ACCUMULATED, "--resume", "auto") == 0
    assert_same_curves(tmp_path / "run", alone)


def test_elastic_restart(launch: Any, alone: Path, tmp_path: Path) -> None:
    """One of two workers is killed; torchrun starts both again, and they continue from the checkpoint."""
    process = launch(tmp_path / "run", *SAME, torchrun=("--max-restarts", 1, *TWO))
    wait_for_step(process, tmp_path / "run", 5)
    worker = children(process.pid)[-1]
    os.kill(worker, signal.SIGKILL)
    finish(process)
    assert_same_curves(tmp_path / "run", alone)
