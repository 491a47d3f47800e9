"""Counts from machine code: right for a kernel whose counts are known, and not growing for those that ship."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

triton = pytest.importorskip("triton")

import machine_code  # noqa: E402

from vmamba.tables import read_csv  # noqa: E402

BENCHMARKS = Path(machine_code.__file__).parent
# In processes of their own: the interpreter compiles nothing.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

KNOWN = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def powers(x, y, turns):
    lane = tl.arange(0, 128)
    total = tl.zeros([128], tl.float32)
    for turn in range(turns):
        total += tl.exp2(tl.load(x + turn * 128 + lane))
        tl.debug_barrier()
    tl.store(y + lane, total)
"""

COUNTED = (
    KNOWN
    + """
from machine_code import disassembled, executed, loops, resources
source = ASTSource(powers, {"x": "*fp32", "y": "*fp32", "turns": "i32"}, {}, {(0,): [["tt.divisibility", 16]]})
cubin = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["cubin"]
listing = disassembled(cubin)
assert len(loops(listing)) == 1, loops(listing)
(first, last), = loops(listing)
for turns in (10, 11):
    counts = executed(listing, [turns])
    print(*(int(counts[kind]) for kind in ("special", "loads_128", "loads_32", "stores_128", "stores_32", "shuffles")))
print(executed(listing, [11])["instructions"] - executed(listing, [10])["instructions"] - (1 + last - first))
print(resources(cubin)["spilled"])
try:
    executed(listing, [])
except ValueError as error:
    print(error)
"""
)


def run(program: str, folder: Path) -> list[str]:
    path = folder / "program.py"  # Triton reads a kernel's source from its file
    path.write_text(program)
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *filter(None, sys.path)])}
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_kernel_whose_counts_are_known(tmp_path: Path) -> None:
    """Four values a lane in each turn: four special functions and one load of 16 bytes; one store at the end."""
    ten, eleven, longer, spilled, message = run(COUNTED, tmp_path)
    special, loads_128, loads_32, stores_128, stores_32, shuffles = (int(n) for n in ten.split())
    assert (loads_128 + loads_32 / 4, stores_128 + stores_32 / 4, shuffles) == (10, 1, 0)
    assert special == 40
    assert int(eleven.split()[0]) == 44
    assert float(longer) == 0
    assert spilled == "0"
    assert message == "the machine code has 1 loops, trips are given for 0"


@pytest.mark.parametrize(
    ("model", "stages", "kernels"), [("vmamba_tiny_s1l8", ["1", "4"], 5), ("vmamba_base_s1l20", ["3"], 3)]
)
def test_the_scan_takes_no_more_instructions_than_recorded(
    model: str, stages: list[str], kernels: int, tmp_path: Path
) -> None:
    """At released shapes, forward and backward: at most 5 % more."""
    name = f"triton-{triton.__version__}-bounds" + ("" if "tiny" in model else f"-{model}")
    recorded = BENCHMARKS / "results" / f"{name}.csv"
    if not recorded.exists():
        pytest.skip(f"nothing is recorded for Triton {triton.__version__}")
    arguments = ["--model", model, "--stages", *stages, "--passes", "scan", "scan, backward"]
    command = [sys.executable, str(BENCHMARKS / "triton_bounds.py"), *arguments, "--output", str(tmp_path / "now")]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stderr
    before = {(row["stage"], row["pass"], row["kernel"]): row for row in read_csv(recorded)}
    now = read_csv(tmp_path / "now.csv")
    assert len(now) == kernels + 2 * len(stages)  # and the sums over all of two passes
    for row in now:
        known = before[row["stage"], row["pass"], row["kernel"]]
        for count in ("slots", "special", "shared", "shuffles", "bytes"):
            assert float(row[count]) <= 1.05 * float(known[count]) + 0.01, (row["kernel"], row["stage"], count)
        if row["kernel"] != "all":
            assert row["spilled"] == "0"
            assert int(row["barriers"]) <= int(known["barriers"])
