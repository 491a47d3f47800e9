"""Registers, spills and shared memory of the Triton kernels, compiled ahead of time. Needs no GPU.

    python benchmarks/triton_report.py                           everything that ships, about 20 minutes on two cores
    python benchmarks/triton_report.py --cases "tiny, 224², bf16" --kernels _outputs --targets sm_90

The operators are called, forward and backward, on tensors without data, of the shapes that they have in the released
models; what they launch is compiled, once for all cases in which Triton would compile the same. Writes .csv and .md
into results/, named after Triton's version, when nothing is left out; exits with status 1 if a kernel spills registers.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from machine_code import resources
from paired import RESULTS, environment, write_csv
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vmamba.model.variants import VARIANTS
from vmamba.ops.backends import triton as kernels
from vmamba.ops.backends.triton import depthwise_silu as depthwise_kernels
from vmamba.ops.backends.triton import launch as launching
from vmamba.ops.backends.triton import selective_backward as selective_backward_kernels
from vmamba.ops.backends.triton import selective_forward as selective_kernels
from vmamba.ops.backends.triton import ss2d_backward as ss2d_backward_kernels
from vmamba.ops.backends.triton import ss2d_forward as ss2d_kernels
from vmamba.ops.backends.triton import ss2d_walk_backward as walk_back_kernels
from vmamba.ops.backends.triton import ss2d_walk_forward as walk_kernels
from vmamba.ops.backends.triton import sums
from vmamba.ops.operands import SS2DOperands
from vmamba.progress import progress_bar

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
MODULES = (
    walk_kernels,
    walk_back_kernels,
    ss2d_kernels,
    ss2d_backward_kernels,
    selective_kernels,
    selective_backward_kernels,
    depthwise_kernels,
    sums,
)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def shapes(name: str, side: int, dtype: torch.dtype, batch: int = 128) -> dict[str, tuple[Any, ...]]:
    """Arguments of `passes` for every stage of a released model."""
    config = VARIANTS[name].config
    stages: dict[str, tuple[Any, ...]] = {}
    for number, dim in enumerate(config.dims, 1):
        tokens, inner = (batch, side >> (number + 1), side >> (number + 1)), int(dim * config.ssm_ratio)
        stages[f"stage {number}"] = (tokens, inner, config.rank(dim), config.d_state, config.ssm_conv_bias, dtype)
    return stages


def model(name: str, side: int, dtype: torch.dtype, batch: int = 128) -> dict[str, Callable[[], None]]:
    """The scan and the convolution before it, of every stage of a released model, parameters in float32."""
    return {part: functools.partial(layer, shape) for part, shape in shapes(name, side, dtype, batch).items()}


def passes(
    tokens: tuple[int, int, int], inner: int, rank: int, states: int, bias: bool, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Scan and convolution of a layer, forward and backward."""
    x, dbc = empty(*tokens, inner, dtype=dtype), empty(*tokens, 4, rank + 2 * states, dtype=dtype)
    operands = (x, dbc, empty(4, inner, rank), empty(4, inner, states), empty(4, inner), empty(4, inner))
    weight, offset = empty(inner, 1, 3, 3), empty(inner) if bias else None
    scanned = SS2DOperands(*operands, "cross")
    return {
        "scan": lambda: kernels.ss2d_scan(scanned),
        "scan, backward": lambda: kernels.ss2d_scan_backward(torch.empty_like(x), scanned),
        "convolution": lambda: depthwise_kernels.depthwise_silu(x, weight, offset),
        "convolution, backward": lambda: depthwise_kernels.depthwise_silu_backward(
            torch.empty_like(x), x, weight, offset
        ),
    }


def layer(shape: tuple[Any, ...]) -> None:
    for run in passes(*shape).values():
        run()


def sequence(length: int, states: int, dtype: torch.dtype) -> None:
    """`selective_scan` as Mamba calls it: one group, softplus, bias and skip."""
    u, A, D = empty(8, 1536, length, dtype=dtype), empty(1536, states), empty(1536)
    B = empty(8, 1, states, length, dtype=dtype)
    selective_kernels.selective_scan(u, u, A, B, B, D, D, True)
    selective_backward_kernels.selective_scan_backward(u, empty(8, 1536, states), u, u, A, B, B, D, D, True)


#: What ships: label → part of it → the calls. The names of the storage types are Triton's.
CASES: dict[str, dict[str, Callable[[], None]]] = {
    "tiny, 224², bf16": model("vmamba_tiny_s1l8", 224, torch.bfloat16),
    "tiny, 224², fp32": model("vmamba_tiny_s1l8", 224, torch.float32),
    "tiny, 224², fp16": model("vmamba_tiny_s1l8", 224, torch.float16),
    "tiny, 1024², bf16": model("vmamba_tiny_s1l8", 1024, torch.bfloat16),
    "tiny, 1024², bf16, batch 1": model("vmamba_tiny_s1l8", 1024, torch.bfloat16, 1),
    "tiny s2, 224², bf16": model("vmamba_tiny_s2l5", 224, torch.bfloat16),
    "base, 224², bf16": model("vmamba_base_s1l20", 224, torch.bfloat16),
    "base, 1024², bf16": model("vmamba_base_s1l20", 1024, torch.bfloat16),
    "base s2, 224², bf16": model("vmamba_base_s2l15", 224, torch.bfloat16),
    "vanilla tiny, 224², bf16": model("vanilla_vmamba_tiny", 224, torch.bfloat16),
    "vanilla tiny, 224², fp32": model("vanilla_vmamba_tiny", 224, torch.float32),
    "vanilla base, 224², bf16": model("vanilla_vmamba_base", 224, torch.bfloat16),
    "selective_scan, bf16": {
        f"N = {states}, {length} tokens": functools.partial(sequence, length, states, torch.bfloat16)
        for states in (1, 16)
        for length in (196, 4096)
    },
    "selective_scan, fp32": {"N = 16, 4096 tokens": functools.partial(sequence, 4096, 16, torch.float32)},
}


@dataclass
class Launch:
    """A kernel and what Triton would specialise it for.

    Attributes:
        module, kernel: Where it is found.
        warps: Of 32 threads, per program.
        constants: By name; also numbers that Triton takes for constants.
        signature: Triton's types of the other parameters, by name.
        aligned: Which of them divide by 16.
        grid: Programs, of the first of these launches.
        operands: Its tensors and numbers, by name.
        used: The cases that launch it.
    """

    module: str
    kernel: str
    warps: int
    constants: dict[str, Any]
    signature: dict[str, str]
    aligned: tuple[str, ...]
    grid: tuple[int, ...]
    operands: dict[str, Any]
    used: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return repr((self.module, self.kernel, self.warps, self.constants, self.signature, self.aligned))

    @property
    def label(self) -> str:
        file = self.module.rsplit(".", 1)[1]
        return f"{file}.{self.kernel}" + (" (backward)" if self.constants.get("ADJOINT") else "")


def specialised(
    kernel: Any, grid: tuple[int, ...], operands: tuple[Any, ...], warps: int, constants: dict[str, Any]
) -> Launch:
    """A launch as Triton would compile it."""
    named = {parameter.name: value for parameter, value in zip(kernel.params, operands, strict=False)}
    constants, signature, aligned = dict(constants), {}, []
    for parameter, value in zip(kernel.params, operands, strict=False):  # the constants follow
        if isinstance(value, Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            aligned.append(parameter.name)
        elif value == 1 and not parameter.do_not_specialize:
            constants[parameter.name] = 1
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(parameter.name)
    return Launch(kernel.fn.__module__, kernel.fn.__name__, warps, constants, signature, tuple(aligned), grid, named)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Every launch within; nothing runs."""
    launches: list[Launch] = []

    def record(kernel: Any, grid: Any, operands: tuple[Any, ...], warps: int, **constants: Any) -> None:
        launches.append(specialised(kernel, grid, operands, warps, constants))

    for module in MODULES:
        module.launch = record
    try:
        yield launches
    finally:
        for module in MODULES:
            module.launch = launching.launch


def different_launches(cases: list[str]) -> list[Launch]:
    """Everything that the cases launch, once."""
    found: dict[str, Launch] = {}
    for case in cases:
        for part, run in CASES[case].items():
            with recorded() as launches:
                run()
            for launch in launches:
                used = found.setdefault(launch.key, launch).used
                if f"{case}, {part}" not in used:
                    used.append(f"{case}, {part}")
    return list(found.values())


def build(launch: Launch, target: str) -> Any:
    """The kernel, compiled as Triton would for this launch."""
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    place = {parameter.name: (i,) for i, parameter in enumerate(kernel.params)}
    constants = dict(launch.constants)
    if target.startswith("gfx"):  # as `launch.product_precision` has it on AMD's GPUs
        constants |= {name: "ieee" for name in ("PRECISION", "GRADIENT") if name in constants}
        constants |= {name: True for name in ("WAITS",) if name in constants}
    source = ASTSource(
        kernel,
        {name: launch.signature.get(name, "constexpr") for name in place},
        {place[name]: value for name, value in constants.items()},
        {place[name]: [["tt.divisibility", 16]] for name in launch.aligned},
    )
    warps = launching.waves(launch.warps, TARGETS[target].warp_size)
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    return triton.compile(source, target=TARGETS[target], options=options)


def compiled(launch: Launch, target: str) -> dict[str, Any]:
    """One line of the report."""
    return {
        "kernel": launch.label,
        "storage": next((launch.signature[name][1:] for name in ("x", "u") if name in launch.signature), "fp32"),
        "states": launch.constants.get("N", ""),
        "target": target,
        "threads": launch.warps * 32,
        **usage(build(launch, target), target),
        "used": "; ".join(launch.used),
    }


def usage(built: Any, target: str) -> dict[str, int]:
    """Registers and bytes of memory in their place per thread, and shared memory per program in bytes."""
    shared = int(built.metadata.shared)
    if not target.startswith("gfx"):
        return resources(built.asm["cubin"]) | {"scalars_spilled": 0, "shared": shared}
    found = {name: int(value) for name, value in re.findall(r"\.(\w+):\s*(\d+)", built.asm["amdgcn"])}
    spilled = max(found["private_segment_fixed_size"], 4 * found["vgpr_spill_count"])
    return {
        "registers": found["vgpr_count"],
        "spilled": spilled,
        "scalars_spilled": found["sgpr_spill_count"],
        "shared": shared,
    }


def report(rows: list[dict[str, Any]], head: dict[str, str]) -> str:
    """The rows as Markdown: a kernel a line, a target a column."""
    lines = [f"# Triton kernels, compiled ahead of time, {head['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in head.items()]
    spilling = [row for row in rows if row["spilled"]]
    verdict = "Nothing spills." if not spilling else f"{len(spilling)} of {len(rows)} spill registers."
    lines += ["", f"Registers per thread · spilled bytes per thread · shared memory in bytes. {verdict}"]
    lines += ["On gfx942 some scalars go to vector registers, not to memory: `scalars_spilled` in the CSV.", ""]
    columns = ["kernel", "storage", "N", *TARGETS, "launched for"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    grouped: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["kernel"], row["storage"], row["states"], row["used"])
        cell = f"{row['registers']} · {row['spilled']} · {row['shared']}"
        grouped.setdefault(key, {})[row["target"]] = cell
    for (kernel, storage, states, used), cells in grouped.items():
        columns = " | ".join(cells[target] for target in TARGETS)
        lines.append(f"| `{kernel}` | {storage} | {states} | {columns} | {used} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--parts", nargs="+", metavar="PART", help='such as "stage 1"; default: all')
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if launching.INTERPRETED:
        parser.error("TRITON_INTERPRET is set; nothing is compiled in the interpreter")
    launches = different_launches(options.cases)
    if options.kernels:
        launches = [launch for launch in launches if launch.kernel in options.kernels]
    if options.parts:
        launches = [launch for launch in launches if any(used.endswith(tuple(options.parts)) for used in launch.used)]
    jobs = [(launch, target) for launch in launches for target in options.targets]
    if not jobs:
        parser.error("no kernel of that name is launched by these cases")
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with progress_bar("kernels") as bar, ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        task = bar.add_task("compiling", total=len(jobs))
        for row in pool.map(compiled, *zip(*jobs, strict=True)):
            rows.append(row)
            bar.advance(task)
            print(*(f"{key} {value}" for key, value in row.items()), sep=" · ", flush=True)
    whole = not options.kernels and not options.parts
    if whole and options.cases == list(CASES) and options.targets == list(TARGETS):
        head = environment() | {"triton": triton.__version__}
        name = f"triton-{triton.__version__}"
        write_csv(RESULTS / f"{name}.csv", rows, head)
        (RESULTS / f"{name}.md").write_text(report(rows, head), encoding="utf-8")
    return int(any(row["spilled"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
