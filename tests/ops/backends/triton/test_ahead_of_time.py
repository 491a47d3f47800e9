"""Kernels that ship, compiled without a GPU, must not spill registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("triton")

REPORT = Path(__file__).parents[4] / "benchmarks" / "triton_report.py"


# In processes of their own: the interpreter compiles nothing.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("tiny, 224², bf16", "stage 1"),
        ("tiny, 224², bf16", "stage 4"),
        ("vanilla tiny, 224², fp32", "stage 3"),  # 16 states
        ("tiny, 1024², bf16, batch 1", "stage 1"),  # several patches: the segments, forward and backward
        ("selective_scan, bf16", "N = 16, 4096 tokens"),
    ],
)
def test_the_kernels_fit_into_registers(case: str, part: str) -> None:
    targets = ["sm_80", "sm_90", "gfx942"]
    command = [sys.executable, str(REPORT), "--cases", case, "--parts", part, "--jobs", "1", "--targets", *targets]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {target for target in targets if f"target {target}" in result.stdout} == set(targets)


TOO_LARGE = """
import triton_report as report
from vmamba.ops.backends.triton import selective_backward as selective_backward_kernels

selective_backward_kernels.TILE = (16, 16, 2)
launches = report.different_launches(["selective_scan, fp32"])
launch = next(launch for launch in launches if launch.kernel == "_chunk_gradients")
for target in ("sm_90", "gfx942"):
    print(report.compiled(launch, target)["spilled"] > 0)
"""


def test_spilled_registers_are_seen() -> None:
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(REPORT.parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", TOO_LARGE]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.split() == ["True", "True"], result.stderr
