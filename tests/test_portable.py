"""Systems without POSIX's signals, process groups and resource limits: everything imports, a run trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.runs import write_images

WITHOUT = """
import importlib, os, pkgutil, signal, sys
import numpy, torch, timm, torchvision, torch.utils.data, torch.utils.tensorboard  # their own needs are their own

for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGPIPE", "SIGQUIT", "alarm", "setitimer"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("setpgid", "getpgid", "killpg", "setsid", "getuid", "geteuid", "fchmod", "chown", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
"""

IMPORT_ALL = """
import vmamba
for module in pkgutil.walk_packages(vmamba.__path__, "vmamba."):
    if not module.name.endswith(("__main__", ".executorch")) and ".integrations." not in module.name:  # large packages
        importlib.import_module(module.name)
        print(module.name)
"""

TRAIN = """
from vmamba.cli import main

sys.exit(main(sys.argv[1:]))
"""


def python(program: str, *arguments: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_imports() -> None:
    imported = python(WITHOUT + IMPORT_ALL).split()
    assert len(imported) > 80
    assert {"vmamba.training.loop", "vmamba.data.loader", "vmamba.cli.train"} <= set(imported)


@pytest.mark.slow
def test_run(tmp_path: Path) -> None:
    write_images(tmp_path, "train", 4)
    write_images(tmp_path, "val", 1)
    model = "model_options={dims: [8, 16], depths: [1, 1]}"
    arguments = ["train", "--data", tmp_path, "--model", "vmamba_pico", "--output", tmp_path / "run", "--device", "cpu"]
    arguments += ["--epochs", 1, "--workers", 1, "--batch-size", 8, "--set", "warmup_epochs=0", model]
    assert "best top-1" in python(WITHOUT + TRAIN, *arguments)
    assert (tmp_path / "run" / "weights" / "model.safetensors").is_file()
