"""A tiny data set, a tiny recipe, and ways to run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.forked import Forked, Process, module
from support.runs import TRAINING, VALIDATION, write_images
from vmamba.cli import main


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and val/ of four classes. Not to be changed."""
    root = tmp_path_factory.mktemp("images")
    write_images(root, "train", TRAINING)
    write_images(root, "val", VALIDATION)
    return root


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    root = tmp_path / "images"
    write_images(root, "train", TRAINING)
    write_images(root, "val", VALIDATION)
    return root


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of eight steps of a very small model, with every kind of randomness."""
    values = {
        "task": "classification",
        "model": "vmamba_pico",
        "model_options": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "drop_path_rate": 0.2},
        "epochs": 3,
        "batch_size": 8,
        "warmup_epochs": 1,
        "ema": 0.9,
        "workers": 0,
        "save_every": 3,
        "log_every": 1,
        "options": {
            "image_size": 32,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "random_erasing": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
        },
    }
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def train(images: Path, recipe: Path) -> Callable[..., int]:
    """Run ``vmamba train`` in this process: ``train(output, "--epochs", 1)``."""

    def run(output: Path, *arguments: object, data: Path | None = None) -> int:
        command = ["train", "--recipe", recipe, "--data", data or images, "--output", output, "--device", "cpu"]
        return main([str(a) for a in (*command, *arguments)])

    return run


@pytest.fixture
def launch(images: Path, recipe: Path) -> Any:
    """Start ``vmamba train`` in a process of its own, through torchrun where it gets options for it."""
    started: list[Process] = []

    def start(output: Path, *arguments: object, torchrun: tuple[object, ...] = ()) -> Process:
        command = ["train", "--recipe", recipe, "--data", images, "--output", output, "--device", "cpu", *arguments]
        started.append(_through_torchrun(torchrun, command) if torchrun else Forked(module("vmamba", command)))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _through_torchrun(options: tuple[object, ...], command: list[object]) -> Process:
    words = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "vmamba", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [str(word) for word in words],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
