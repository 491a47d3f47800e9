"""A kernel that ships, compiled without a GPU, must not spill registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

REPORT = Path(__file__).parents[2] / "benchmarks" / "triton_report.py"


def test_the_kernel_of_one_patch_images_fits_into_registers() -> None:
    command = [sys.executable, str(REPORT), "--kernels", "_outputs", "--stages", "4", "--targets", "sm_90", "gfx942"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("spilled 0") == 2
