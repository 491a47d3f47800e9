"""What binds the Triton kernels, by their machine code for sm_90: a bound in microseconds. Needs no GPU.

    python benchmarks/triton_bounds.py                           all kernels of vmamba_tiny_s1l8, 224², bf16, batch 128
    python benchmarks/triton_bounds.py --kernels _outputs --stages 1 3
    python benchmarks/triton_bounds.py --model vmamba_base_s1l20

A pass is called on tensors without data; what it launches is compiled for sm_90, and its instructions are counted
(`machine_code`): those of a warp, times the warps of all programs. So padding, of tiles and of programs, is counted.
Divided by the tokens, channels and routes of the pass, times the 32 lanes of a warp, they are *slots* per element.

The bound is the largest of three times: the bytes that move between memory and caches (every operand once per kernel;
what a program alone returns to is in the caches), special functions, and issue slots, each at the peak of `PEAKS`. It
supposes that nothing ever waits, so no kernel reaches it. MI300X has instructions of its own: an estimate.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton_report as report
from machine_code import disassembled, executed, loops, occupancy, resources
from other_passes import bounds, other_passes
from paired import RESULTS, environment, write_csv
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vmamba.model.variants import VARIANTS
from vmamba.ops.backends.triton.tiles import RANKS

MODEL = "vmamba_tiny_s1l8"


@dataclass(frozen=True)
class Peak:
    """Of a GPU, in 10¹² per second: bytes, lanes of instructions and of special functions, operations of products."""

    bytes: float
    slots: float
    special: float
    flops: float

    def bound(self, moved: float, slots: float, special: float) -> float:
        """Lower bound in microseconds."""
        return max(moved / self.bytes, slots / self.slots, special / self.special) / 1e6


#: H100 SXM and H200: 132 multiprocessors at 1.755 GHz, each issues 4 × 32 lanes and 16 special functions a clock.
#: MI300X: 304 compute units at 2.1 GHz, 64 lanes and 16 special functions a clock. Products of bfloat16.
PEAKS = {
    "H100": Peak(3.35, 132 * 1.755e9 * 128 / 1e12, 132 * 1.755e9 * 16 / 1e12, 989.4),
    "H200": Peak(4.8, 132 * 1.755e9 * 128 / 1e12, 132 * 1.755e9 * 16 / 1e12, 989.4),
    "MI300X": Peak(5.3, 304 * 2.1e9 * 64 / 1e12, 304 * 2.1e9 * 16 / 1e12, 1307.4),
}


@dataclass(frozen=True)
class Kernel:
    """What a launch does not say about itself.

    Attributes:
        reads, writes: Names of the tensors, apart from small parameters.
        trips: Of the loops in its machine code, from numbers and constants of the launch, and `products`: which of them
            multiply on the tensor cores.
        held: Bytes that a program returns to, which must stay in the caches for `bytes` to be what moves.
    """

    reads: str
    writes: str
    trips: Callable[[dict[str, Any]], list[float]] = lambda known: []
    held: Callable[[dict[str, Any]], int] = lambda known: 0


def _groups(known: dict[str, Any]) -> float:
    """Groups of rows that the depthwise kernels read at a time, in a strip; strips differ in length."""
    height, rows = known["height"], known["rows"]
    strips = [min(rows, height - first) for first in range(0, height, rows)]
    return sum(triton.cdiv(strip, known["AHEAD"]) for strip in strips) / len(strips)


def _visits(known: dict[str, Any]) -> int:
    """Of a program of `_walk_back`: groups of images × blocks of channels × routes."""
    block = known["C"] * known["G"] if known["SPLIT"] else known["C"]
    parts = triton.cdiv(triton.cdiv(known["last_channel"] + 1, block), known["blocks"])
    return triton.cdiv(known["groups"], known["grid"][0] // parts) * known["blocks"] * known["K"]


def _chains_of_walk(known: dict[str, Any]) -> list[int]:
    """Of `_walk`: routes; in each, a walk to the ends of several chains, of several states from end to end, a walk."""
    ends = [known["steps"]] if known["CHAINS"] > 1 else []
    composed = _if_loops(known["CHAINS"] - 1) if known["N"] > 1 else []
    return [known["K"], *ends, *composed, known["steps"]]


def _groups_of_states(known: dict[str, Any]) -> list[float]:
    """Of `_walk_back_states`: a visit for each group of states and for their sums; in the former all loops but one."""
    groups = known["N"] // known["AT_ONCE"]
    loops = [known["steps"], *2 * _if_loops(known["CHAINS"] - 1), known["steps"]]
    visits, part = _visits(known) * (groups + 1), groups / (groups + 1)
    return [visits, *(trips * part for trips in loops), known["steps"] / (groups + 1)]


def _visits_of_patches(known: dict[str, Any]) -> list[float]:
    """Of `_gradients`: visits; in each, the states and the ranks of the gradient. The projection is unrolled."""
    visits = triton.cdiv(known["patches"] * known["batch"], known["grid"][1]) * known["blocks"] * known["K"]
    return [visits, *_if_loops(known["N"], triton.cdiv(known["R"], RANKS.value))]


def _states_and_ranks(known: dict[str, Any]) -> list[int]:
    """Of the other kernels for patches, routes unrolled: the projection where a loop has products, else the states."""
    return [triton.cdiv(known["R"], RANKS.value) if products else known["N"] for products in known["products"]]


def _if_loops(*trips: int) -> list[int]:
    """Loops of one trip are none."""
    return [trip for trip in trips if trip > 1]


def _held(known: dict[str, Any], times: int) -> int:
    """Bytes of a walking program: so many times the tokens of its images, of its channels."""
    images = 16 * known["G"] // known["CHAINS"]  # or parts of their channels, where warps split those
    return times * known["height"] * known["width"] * images * known["C"] * known["x"].element_size()


KERNELS = {
    "_walk": Kernel(
        "x dbc",
        "y",
        _chains_of_walk,
        lambda known: _held(known, 2),  # x, y
    ),
    "_walk_back": Kernel(
        "dy x dbc",
        "dx ddbc dweight dA dskip dbias",
        lambda known: [_visits(known), known["steps"], known["steps"]],
        lambda known: _held(known, 4 + min(2, known["CHAINS"])),  # dy, x, `sums` of twice the size, `kept`
    ),
    "_walk_back_states": Kernel(
        "dy x dbc",
        "dx ddbc dweight dA dskip dbias",
        _groups_of_states,
        lambda known: _held(known, 8 + known["AT_ONCE"]),  # dy, x, `sums`, twice in `linear`, in float32, `kept`
    ),
    "_sum_parts": Kernel("parts", "total"),
    "_segment_ends": Kernel("x dbc", "sums ends", _states_and_ranks),
    "_segment_starts": Kernel(
        "sums ends", "ends", lambda known: [triton.cdiv(known["segments"], known["STEPS"] * known["LINES"])]
    ),
    "_outputs": Kernel("x dbc starts", "y", _states_and_ranks),
    "_gradients": Kernel("dy x dbc starts pushed", "dx ddbc dweight dA dskip dbias", _visits_of_patches),
    "_convolved": Kernel("x", "y", lambda known: [_groups(known)]),
    "_differentiated": Kernel("dy x", "dz sums", lambda known: [known["items"] / known["programs"], _groups(known)]),
}


class Elsewhere(TorchDispatchMode):
    """Bytes that PyTorch's own operators move, such as the sums over programs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func.name().startswith("aten::empty") and "new_empty" not in func.name():
            self.bytes += sum(t.nbytes for t in (*args, result) if isinstance(t, Tensor))
        return result


def moved(launch: report.Launch, kernel: Kernel) -> int:
    """Bytes between memory and caches. A tensor that only stands in for another, absent one is not counted again."""
    tensors: dict[int, Tensor] = {}
    written = [launch.operands[name] for name in kernel.writes.split()]
    for name in kernel.reads.split():
        tensor = launch.operands[name]
        if name in kernel.writes.split() or all(tensor is not other for other in written):
            tensors[id(tensor)] = tensor
    return sum(t.nbytes for t in (*tensors.values(), *written))


def counted(launch: report.Launch) -> tuple[Counter[str], dict[str, Any]]:
    """Instructions of all lanes of all programs, and what a program takes."""
    built = report.build(launch, "sm_90")
    cubin = built.asm["cubin"]
    listing = disassembled(cubin)
    spans = [listing[first : last + 1] for first, last in loops(listing)]
    products = [any("tensor" in instruction.kinds for instruction in span) for span in spans]
    known = launch.operands | launch.constants | {"grid": launch.grid, "products": products}
    lanes = launch.warps * 32
    for programs in launch.grid:
        lanes *= programs
    counts = executed(listing, KERNELS[launch.kernel].trips(known))
    static = Counter(kind for instruction in listing for kind in instruction.kinds)
    used = resources(cubin)
    resident = occupancy(used["registers"], launch.warps, int(built.metadata.shared))
    taken = used | {"barriers": static["barriers"], "warps": launch.warps, "resident_warps": resident}
    at_work = min(lanes // 32, 132 * resident) // launch.warps
    taken["held_MB"] = round(KERNELS[launch.kernel].held(known) * at_work / 1e6)
    return Counter({kind: count * lanes for kind, count in counts.items()}), taken


#: How many tensors must move: of x's size, and of dbc's. Backward, the gradients of the parameters must, too.
NECESSARY = {"scan": (2, 1), "scan, backward": (3, 2), "convolution": (2, 0), "convolution, backward": (3, 0)}


def rows(shape: tuple[Any, ...], stage: str, run: str, chosen: list[str] | None) -> list[dict[str, Any]]:
    """One line per kernel of a pass and one for all of them."""
    (batch, height, width), inner, rank, states, bias, dtype = shape
    routes = 4 if run.startswith("scan") else 1
    elements = batch * height * width * inner * routes
    xs, dbcs = NECESSARY[run]
    minimum = (xs * inner + dbcs * 4 * (rank + 2 * states)) * batch * height * width * dtype.itemsize
    if run == "scan, backward":  # in float32: of the projection of Δ, A, D, and the bias
        minimum += 4 * inner * 4 * (rank + states + 2)
    elif run == "convolution, backward":
        minimum += 4 * inner * (9 + bias)
    with report.recorded() as launches, Elsewhere() as elsewhere:
        report.passes(*shape)[run]()
    launches = [launch for launch in launches if not chosen or launch.kernel in chosen]
    counted_rows: list[dict[str, Any]] = []
    total: Counter[str] = Counter()
    bounds: Counter[str] = Counter()
    for launch in launches:
        counts, taken = counted(launch)
        size = moved(launch, KERNELS[launch.kernel])
        counted_rows.append(line(stage, run, launch.kernel, counts, size, taken, elements, minimum))
        total += counts + Counter(bytes=size)
        bounds += Counter({name: counted_rows[-1][name] for name in PEAKS})
    size = total.pop("bytes", 0) + elsewhere.bytes
    all_of_them = line(stage, run, "all", total, size, {}, elements, minimum)
    return [*counted_rows, all_of_them | {name: round(bound, 1) for name, bound in bounds.items()}]


TAKEN = ("registers", "spilled", "barriers", "warps", "resident_warps", "held_MB")


def line(
    stage: str,
    run: str,
    kernel: str,
    counts: Counter[str],
    size: int,
    taken: dict[str, Any],
    elements: int,
    minimum: int,
) -> dict[str, Any]:
    """Counts per element and route, and bounds."""
    kinds = ("special", "tensor", "shared", "shuffles")
    widths = [f"{way}_{bits}" for way in ("loads", "stores") for bits in (8, 16, 32, 64, 128)]
    return {
        "stage": stage,
        "pass": run,
        "kernel": kernel,
        "slots": round(counts["instructions"] / elements, 2),
        **{kind: round(counts[kind] / elements, 2) for kind in (*kinds, *widths)},
        **{name: taken.get(name, "") for name in TAKEN},
        "bytes": round(size / minimum, 2),
        **{name: round(peak.bound(size, counts["instructions"], counts["special"]), 1) for name, peak in PEAKS.items()},
    }


def table(counted_rows: list[dict[str, Any]], head: dict[str, str], model: str) -> str:
    """The rows as Markdown."""
    depths = VARIANTS[model].config.depths
    lines = [f"# Bounds of the Triton kernels, by machine code for sm_90, {head['date']}", ""]
    lines += [f"- {key}: {value}" for key, value in head.items()]
    lines += [
        "",
        f"{model}, 224², bf16, batch 128. Per token, channel and route (there are 4 of the scan's), padding",
        "counted: issue slots, special functions, tensor-core, shared-memory and shuffle instructions. Barriers in the",
        "code. `held_MB`: what the programs at work on an H100 return to, moved once as long as the caches hold it (L2",
        "50 MB, 132 L1 of 0.2 MB). Bytes moved ÷ minimum. Bounds in µs, which suppose that nothing waits.",
        "",
    ]
    columns = ["stage", "pass", "kernel", "slots", "special", "tensor", "shared", "shuffles", "registers", "spilled"]
    columns += ["barriers", "warps", "resident_warps", "held_MB", "bytes", *PEAKS]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(str(row[name]) for name in columns)} |" for row in counted_rows]
    for run in NECESSARY:
        sums = [row for row in counted_rows if row["pass"] == run and row["kernel"] == "all"]
        if len(sums) == len(depths):
            whole = {name: sum(row[name] * n for row, n in zip(sums, depths, strict=True)) / 1000 for name in PEAKS}
            cells = ", ".join(f"{name} {value:.2f} ms" for name, value in whole.items())
            lines += ["", f"{run}, of the whole model ({sum(depths)} layers): {cells}."]
            lines += ["", beside(model, whole)] if run == "scan" else []
    return "\n".join(lines) + "\n"


def beside(model: str, scans: dict[str, float]) -> str:
    """What the scans' bounds, in milliseconds, mean beside all else that a forward pass does."""
    found = other_passes(model, 224, 128)
    counts = Counter(each.kind for each in found if each.bytes > 1e6)  # not what computes parameters
    cells = []
    for name, peak in PEAKS.items():
        times = bounds(found, peak.bytes, peak.flops)
        apart = sum(times.values())
        fused = apart - times["pointwise"]
        parts = [f"{100 * scans[name] / (scans[name] + other):.0f} %" for other in (fused, apart)]
        cells.append(
            f"{name} {fused:.2f} to {apart:.2f} ms, so that the scans are {parts[0]} to {parts[1]} of the whole"
        )
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return (
        f"Beside them a forward pass has {counts.total()} passes over features ({listed}). In bfloat16, at the same "
        f"peaks, with the pointwise ones fused into others or each apart: {'; '.join(cells)}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=VARIANTS, default=MODEL, metavar="NAME", help=f"default: {MODEL}")
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--passes", nargs="+", choices=NECESSARY, default=list(NECESSARY))
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--output", type=Path, metavar="STEM", help="default: in results/, when nothing is left out")
    options = parser.parse_args()
    if report.launching.INTERPRETED:
        parser.error("TRITON_INTERPRET is set; nothing is compiled in the interpreter")
    counted_rows: list[dict[str, Any]] = []
    for number, (stage, shape) in enumerate(report.shapes(options.model, 224, torch.bfloat16).items(), 1):
        if number in options.stages:
            for run in options.passes:
                counted_rows += rows(shape, stage, run, options.kernels)
    head = environment() | {"triton": triton.__version__}
    text = table(counted_rows, head, options.model)
    print(text)
    whole = not options.kernels and options.passes == list(NECESSARY) and options.stages == [1, 2, 3, 4]
    name = f"triton-{triton.__version__}-bounds" + ("" if options.model == MODEL else f"-{options.model}")
    if stem := options.output or (RESULTS / name if whole else None):
        write_csv(Path(f"{stem}.csv"), counted_rows, head)
        Path(f"{stem}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
