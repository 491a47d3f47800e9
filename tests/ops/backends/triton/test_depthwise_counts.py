"""Machine code of the depthwise kernels for sm_90, which must not grow, and the bytes that they move."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmamba.tables import read_csv

pytestmark = pytest.mark.slow

pytest.importorskip("triton")

BOUNDS = Path(__file__).parents[4] / "benchmarks" / "triton_bounds.py"

#: Issue slots per token and channel in stage 1 of tiny, bf16, by Triton 3.9, and bytes in units of the minimum.
RECORDED = {
    ("convolution", "_convolved"): (32.4, 1.0),
    ("convolution, backward", "_differentiated"): (53.8, 1.02),
    ("convolution, backward", "_convolved"): (23.7, 0.67),
    ("convolution, backward", "all"): (77.4, 1.69),
}


def test_instructions_and_bytes_of_a_value(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    passes = dict.fromkeys(name for name, _ in RECORDED)
    command = [sys.executable, str(BOUNDS), "--stages", "1", "--passes", *passes, "--output", str(tmp_path / "bounds")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {(row["pass"], row["kernel"]): row for row in read_csv(tmp_path / "bounds.csv")}
    for key, (slots, moved) in RECORDED.items():
        assert float(rows[key]["slots"]) < 1.05 * slots
        assert float(rows[key]["bytes"]) < 1.02 * moved
        assert rows[key]["spilled"] in ("0", "")
        assert rows[key]["barriers"] in ("0", "")  # no warp waits for another
