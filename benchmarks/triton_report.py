"""Registers, spills and shared memory of the Triton kernels, compiled ahead of time. Needs no GPU.

    python benchmarks/triton_report.py                                       everything, about 15 minutes on two cores
    python benchmarks/triton_report.py --kernels _outputs --stages 4 --targets sm_90

The scans are launched on tensors without data at the shapes of `vmamba_tiny_s1l8`, 224×224, batch 128, bfloat16 beside
float32 parameters; what they launch is compiled. Exits with status 1 if anything spills.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vmamba.ops import triton_ss2d, triton_ss2d_backward, triton_tiles

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
#: (side of the token grid, channels, rank) of the four stages.
STAGES = ((56, 96, 6), (28, 192, 12), (14, 384, 24), (7, 768, 48))
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}

Launch = tuple[Any, tuple[Any, ...], int, dict[str, Any]]


def launches(stage: int) -> list[Launch]:
    """What the forward and the backward pass of a stage (1 to 4) launch: kernel, operands, warps, constants."""
    side, channels, rank = STAGES[stage - 1]
    recorded: list[Launch] = []

    def record(kernel: Any, grid: Any, operands: tuple[Any, ...], warps: int, **constants: Any) -> None:
        recorded.append((kernel, operands, warps, constants))

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(128, side, side, channels, dtype=torch.bfloat16)
    dbc = empty(128, side, side, 4, rank + 2, dtype=torch.bfloat16)
    operands = (x, dbc, empty(4, channels, rank), empty(4, channels, 1), empty(4, channels), empty(4, channels))
    triton_ss2d.launch = triton_ss2d_backward.launch = record
    try:
        triton_ss2d.ss2d_scan(*operands, "cross")
        triton_ss2d_backward.ss2d_scan_backward(x, *operands, "cross")
    finally:
        triton_ss2d.launch = triton_ss2d_backward.launch = triton_tiles.launch
    return recorded


def build(launch: Launch, target: str) -> Any:
    """Compile a kernel for what it was launched with, as Triton specialises it."""
    kernel, operands, warps, given = launch
    if target.startswith("gfx"):
        given = given | {name: "ieee" for name in ("PRECISION", "GRADIENT") if name in given}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(kernel.params):
        signature[parameter.name] = "constexpr"
        if i >= len(operands):
            constants[(i,)] = given[parameter.name]
        elif isinstance(operands[i], Tensor):
            signature[parameter.name] = POINTERS[operands[i].dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif operands[i] == 1 and not parameter.do_not_specialize:
            constants[(i,)] = 1
        else:
            signature[parameter.name] = "i32"
            if operands[i] % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=TARGETS[target], options=options)


def usage(compiled: Any, target: str) -> dict[str, int]:
    """Registers and spilled bytes per thread, and shared memory per program in bytes."""
    shared = int(compiled.metadata.shared)
    if target.startswith("gfx"):
        found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s*(\d+)", compiled.asm["amdgcn"])}
        return {"registers": found["vgpr_count"], "spilled": 4 * found["vgpr_spill_count"], "shared": shared}
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listing = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", listing)}
    return {"registers": found["REG"], "spilled": found["STACK"], "shared": shared}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--stages", nargs="+", type=int, choices=range(1, 5), default=[1, 2, 3, 4])
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--output", type=Path, help="CSV; default: print only")
    options = parser.parse_args()
    if triton_tiles.INTERPRETED:
        parser.error("TRITON_INTERPRET is set; nothing is compiled in the interpreter")
    rows: list[dict[str, Any]] = []
    for stage in options.stages:
        seen = set()
        for launch in launches(stage):
            name = launch[0].__name__
            label = name + (" of the backward pass" if launch[3].get("ADJOINT") else "")
            if label in seen or (options.kernels and name not in options.kernels):
                continue
            seen.add(label)
            for target in options.targets:
                rows.append({"stage": stage, "kernel": label, "target": target, **usage(build(launch, target), target)})
                print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=" · ", flush=True)
    if options.output:
        with options.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return int(any(row["spilled"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
