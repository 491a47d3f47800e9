"""What the tests of training share: images, and looks at what a run left."""

from __future__ import annotations

import csv
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from support.forked import Process

CLASSES = ("blue", "green", "grey", "red")
#: Images per class.
TRAINING, VALIDATION = 16, 4
#: Steps per epoch of the tiny recipe.
STEPS = 8


def write_images(root: Path, split: str, count: int) -> None:
    """Noise around a colour for each class."""
    generator = np.random.default_rng(count)
    colours = {"blue": (60, 60, 190), "green": (60, 190, 60), "grey": (120, 120, 120), "red": (190, 60, 60)}
    for name in CLASSES:
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            noise = generator.normal(colours[name], 60, (36, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"{i:02d}.png")


def wait_for_step(process: Process, output: Path, step: int, seconds: float = 120) -> None:
    """Until the log of a run has reached a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rows = read_rows(output / "steps.csv")
        if rows and int(rows[-1]["step"]) >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {seconds} s")


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row.values())]


def losses(output: Path) -> list[float]:
    return [float(row["loss"]) for row in read_rows(output / "steps.csv")]


def last_state(output: Path) -> dict[str, Any]:
    (*_, path) = sorted((output / "checkpoints").glob("step_*.pt"))
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor in a nest of mappings and lists."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {n: t for key, item in items for n, t in tensors(item, f"{name}/{key}").items()}


def assert_identical(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Weights, averages and optimiser states are the same, bit for bit."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert len(a) > 100
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(word) for word in listed.stdout.split()]
