"""Kernels that ship, compiled without a GPU, must not spill registers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.marks import exhaustive

pytestmark = pytest.mark.slow

pytest.importorskip("triton")

REPORT = Path(__file__).parents[4] / "benchmarks" / "triton_report.py"


# In processes of their own: the interpreter compiles nothing.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.mark.parametrize(
    ("case", "part", "targets"),
    [
        ("tiny, 224², bf16", "stage 1", ["sm_80", "gfx942"]),  # and sm_90: benchmarks/test_machine_code.py
        exhaustive("tiny, 224², bf16", "stage 4", ["sm_80", "gfx942"]),
        ("vanilla tiny, 224², bf16", "stage 2", ["sm_80"]),  # 16 states, which need nearly all registers
        # Several patches: the segments, forward and backward.
        ("tiny, 1024², bf16, batch 1", "stage 3", ["sm_80"]),  # which has the fewest registers
        exhaustive("tiny, 1024², bf16, batch 1", "stage 3", ["sm_90", "gfx942"]),
        exhaustive("selective_scan, bf16", "N = 16, 4096 tokens", ["sm_80", "sm_90", "gfx942"]),
    ],
)
def test_the_kernels_fit_into_registers(case: str, part: str, targets: list[str]) -> None:
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


def run(program: str) -> str:
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(REPORT.parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


DIFFERENT = """
import torch, triton_report as report

def launches(name, side, batch=128):
    found = {}
    for run in report.model(name, side, torch.bfloat16, batch).values():
        with report.recorded() as recorded:
            run()
        found |= {launch.key: launch for launch in recorded}
    return found

print(len(launches("vmamba_tiny_s1l8", 224)))
# One image: several patches, of which the kernels for patches know no numbers.
first, second = launches("vmamba_tiny_s1l8", 1024, 1), launches("vmamba_tiny_s1l8", 992, 1)
print(sum(launch.kernel == "_gradients" for launch in first.values()), len(set(first) - set(second)))
large = launches("vanilla_vmamba_tiny", 8192 * 2, 1)
grids = [launch.grid for launch in large.values()]
print(max(grid[0] for grid in grids) > 65535, all(programs <= 65535 for grid in grids for programs in grid[1:]))
"""


def test_few_kernels_are_compiled_and_for_images_of_any_size() -> None:
    """All of a model's scans and convolutions, forward and backward: at most 12. Grids end at 65535 but on one axis."""
    different, sizes, grids = run(DIFFERENT).splitlines()
    assert int(different) <= 12
    assert sizes == "3 0"
    assert grids == "True True"


WAITS = """
import re
import torch, triton_report as report

shape = ((2, 14, 14), 32, 6, 1, False, torch.bfloat16)
several = ((2, 14, 14), 32, 6, 2, False, torch.bfloat16)
three = ((1, 14, 14), 32, 6, 3, False, torch.bfloat16)
cases = ((shape, "_walk_back"), (shape, "_walk"), (several, "_walk_back_states"), (three, "_gradients"))
for case, kernel in cases:
    runs = report.passes(*case)
    with report.recorded() as launches:
        runs["scan"](), runs["scan, backward"]()
    built = report.build(next(launch for launch in launches if launch.kernel == kernel), "gfx942")
    order = re.findall("tt.store|s_waitcnt vmcnt|barrier", built.asm["ttgir"])
    waits = [code.split("s_barrier")[0] for code in built.asm["amdgcn"].split("ASMSTART")[1:]]
    print(kernel, order[-3:], all("s_waitcnt vmcnt(0)" in code and "_load_" not in code for code in waits))
"""


def test_stores_have_arrived_before_other_threads_read_them_on_gfx942() -> None:
    """The last stores of a route are followed by a wait for them, and that by a barrier: Triton's own does not wait.

    Nothing is loaded between a wait and its barrier.
    """
    kernels = ("_walk_back", "_walk", "_walk_back_states", "_gradients")
    expected = "['tt.store', 's_waitcnt vmcnt', 'barrier'] True"
    assert run(WAITS).splitlines() == [f"{kernel} {expected}" for kernel in kernels]
