"""Kernels that ship, compiled without a GPU, must not spill registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

REPORT = Path(__file__).parents[2] / "benchmarks" / "triton_report.py"


def test_the_kernels_of_one_patch_images_fit_into_registers() -> None:
    kernels, targets = ["_outputs", "_gradients"], ["sm_90", "gfx942"]
    command = [sys.executable, str(REPORT), "--kernels", *kernels, "--stages", "4", "--targets", *targets]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("spilled 0") == len(kernels) * len(targets)
