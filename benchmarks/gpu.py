"""VMamba on a GPU: the scan against the memory's speed and the usual way, the models against their peers in timm.

    python benchmarks/gpu.py                          everything, less than 9 minutes on one H200
    python benchmarks/gpu.py scan growth              two of its sections
    python benchmarks/gpu.py --plan smoke             tiny shapes: does it run? (--device cpu: anywhere)

First every scan is compared with the portable one in float64, forward and all gradients, and a wrong one is not timed.
Kernels and models are compiled beforehand in processes of their own, so that several are compiled at a time; their
results come from the compilers' caches afterwards. Then everything is timed in this process, the cases of a comparison
taking turns: medians and quartiles of the GPU's own clock. What fails or takes too long is left out and named.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gpu_report import draw, report
from gpu_scan import Shape, WrongScanError, check, forward_and_backward, operands, sequence_scan, unfused
from gpu_scan import unfused_operands as usual_operands
from paired import RESULTS, Timing, alternate, environment, step, write_csv
from torch import Tensor, nn

from vmamba.analysis.models import load_model
from vmamba.ops import select, ss2d_scan, use_backend

Row = dict[str, object]
MODES = ("inference", "training")
#: Relative difference, in bfloat16, between a model's output with the fused and the portable scan, eager and compiled.
MODEL_TOLERANCE = 5e-2


def stages(label: str, batch: int, side: int) -> tuple[Shape, ...]:
    """The scans of `vmamba_tiny_s1l8` for square images."""
    sizes = ((4, 96, 6), (8, 192, 12), (16, 384, 24), (32, 768, 48))
    return tuple(
        Shape(f"{label} stage {i}", batch, side // stride, side // stride, channels, rank)
        for i, (stride, channels, rank) in enumerate(sizes, 1)
    )


@dataclass(frozen=True)
class Plan:
    """What is measured, the most important first.

    Attributes:
        small: Scans that are only checked.
        scans: Scans that are checked and timed.
        families: Models that are compared with each other, ours first.
        batch: Images per step of the models.
        side: Of their images.
        growth: Models whose time is followed over `sides`, at batch 1.
        copied: Bytes of the buffer whose copy measures the memory.
    """

    small: tuple[Shape, ...]
    scans: tuple[Shape, ...]
    families: dict[str, tuple[str, ...]]
    batch: int
    side: int
    growth: tuple[str, ...]
    sides: tuple[int, ...]
    copied: int


_F32 = torch.float32
FULL = Plan(
    small=(
        Shape("one token", 2, 1, 1, 7, 3, 1, _F32),
        Shape("one patch", 2, 5, 3, 96, 6, 1, _F32),
        Shape("many patches", 2, 37, 50, 40, 6, 1, _F32),
        Shape("16 states", 1, 19, 33, 32, 6, 16, _F32),
    ),
    scans=stages("224²", 128, 224) + stages("1024²", 1, 1024) + stages("2048²", 1, 2048),
    families={
        "T": (
            *("vmamba_tiny_s1l8", "swin_tiny_patch4_window7_224", "convnext_tiny"),
            *("mambaout_tiny", "deit_small_patch16_224"),
        ),
        "S": ("vmamba_small_s1l20", "swin_small_patch4_window7_224", "convnext_small"),
        "B": ("vmamba_base_s1l20", "swin_base_patch4_window7_224", "convnext_base"),
    },
    batch=128,
    side=224,
    growth=("vmamba_tiny_s1l8", "swin_tiny_patch4_window7_224", "convnext_tiny", "deit_small_patch16_224"),
    sides=(224, 384, 512, 768, 1024, 1536, 2048),
    copied=1 << 30,
)
SMOKE = Plan(
    small=(Shape("one patch", 1, 5, 3, 8, 2, 1, _F32),),
    scans=(Shape("small", 2, 6, 7, 16, 3),),
    families={"T": ("vmamba_pico", "test_convnext")},
    batch=2,
    side=32,
    growth=("vmamba_pico",),
    sides=(32, 64),
    copied=1 << 20,
)
PLANS = {"full": FULL, "smoke": SMOKE}


@dataclass
class Bench:
    """One run: its options, and what it has found so far."""

    plan: Plan
    device: str
    rounds: int
    deadline: float
    section_end: float = math.inf
    rows: list[Row] = field(default_factory=list)
    #: Lines about what was refused, failed or left out.
    notes: list[str] = field(default_factory=list)
    #: Labels of scans that are wrong.
    wrong: set[str] = field(default_factory=set)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    def note(self, line: str) -> None:
        self.notes.append(line)
        print(f"! {line}", flush=True)

    def left(self) -> float:
        """Seconds of the section."""
        return min(self.section_end, self.deadline) - time.monotonic()

    def add(self, section: str, case: str, what: str, timing: Timing, **more: object) -> None:
        row: Row = {"section": section, "case": case, "what": what}
        row |= {f"ms{end}": timing_ms for end, timing_ms in _milliseconds(timing)}
        row |= {name: more.get(name, "") for name in ("batch", "side", "images_per_s", "of_copy", "peak_mib", "note")}
        self.rows.append(row)
        print(*(f"{k} {v}" for k, v in row.items() if v != "" and k != "section"), sep=" · ", flush=True)

    def compare(
        self, cases: dict[str, Callable[[], object]], seconds: float, between: Callable[[], object] | None = None
    ) -> dict[str, Timing]:
        return alternate(cases, self.rounds, device=self.device, seconds=seconds, between=between)


def _milliseconds(timing: Timing) -> Iterator[tuple[str, float]]:
    for end, seconds in (("", timing.median), ("_low", timing.low), ("_high", timing.high)):
        yield end, round(seconds * 1e3, 4)


class OutOfTimeError(Exception):
    """The time for one thing is over."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give up what runs inside after `seconds`: again and again, for libraries that catch everything."""

    def stop(*_: object) -> None:
        raise OutOfTimeError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def graphed(run: Callable[[], object], device: str) -> Callable[[], object]:
    """The same as one CUDA graph: the kernels without the time that Python takes to start them."""
    if not device.startswith("cuda"):
        return run
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay(_: object = kept) -> None:
        graph.replay()

    return replay


# --------------------------------------------------------------------------------------------------------------------
# Sections. Each adds rows to the bench as soon as it has them.


def correctness(bench: Bench) -> None:
    """Which scans are right; the others are not timed."""
    for shape in (*bench.plan.small, *bench.plan.scans):
        try:
            with within(min(60, bench.left())):
                bench.errors[shape.label] = check(shape, bench.device)
        except WrongScanError as error:
            bench.wrong.add(shape.label)
            bench.note(str(error))
        except Exception as error:  # also counts as wrong: it has not been seen to be right
            bench.wrong.add(shape.label)
            bench.note(f"{shape.label}: not checked, so not timed: {one_line(error)}")
        else:
            print(f"right: {shape.label}, worst relative error {max(bench.errors[shape.label].values()):.1e}")
        if bench.device.startswith("cuda"):
            torch.cuda.empty_cache()


def copy(bench: Bench) -> None:
    """What the memory does: one read and one write of every byte."""
    source = torch.zeros(bench.plan.copied, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    timing = bench.compare({"copy": lambda: target.copy_(source)}, 5)["copy"]
    gigabytes = 2 * bench.plan.copied / timing.median / 1e9
    bench.add("copy", "copy", "memory", timing, note=f"{gigabytes:.0f} GB/s")


def scan(bench: Bench) -> None:
    """The scan and the usual way, forward and forward + backward, the caches emptied before each call."""
    if not any(row["section"] == "copy" for row in bench.rows):
        copy(bench)
    speed = next(2 * bench.plan.copied / (row["ms"] / 1e3) for row in bench.rows if row["section"] == "copy")
    flood = torch.empty(bench.plan.copied // 4, dtype=torch.uint8, device=bench.device)
    for shape in bench.plan.scans:
        if shape.label in bench.wrong:
            continue
        for what in ("forward", "forward + backward"):
            cases: dict[str, Callable[[], object]] = {}
            for name in ("fused", sequence_scan()[0]):
                try:
                    with within(min(20, bench.left())):
                        cases[name] = graphed(scan_case(shape, name, what, bench.device), bench.device)
                except Exception as error:
                    bench.note(f"{shape.label}, {what}, {name}: left out: {one_line(error)}")
            if "fused" not in cases:
                continue
            for name, timing in bench.compare(cases, 3, flood.zero_).items():
                ideal = shape.least_bytes("backward" in what) / speed
                of_copy = round(ideal / timing.median, 3) if name == "fused" else ""
                bench.add("scan", name, what, timing, of_copy=of_copy, batch=shape.batch, note=shape.label)


def scan_case(shape: Shape, name: str, what: str, device: str) -> Callable[[], object]:
    """What is timed of a scan."""
    values = operands(shape, device)
    function: Callable[..., Tensor] = ss2d_scan
    if name != "fused":
        values, function = usual_operands(values), unfused
    leaves = [t.requires_grad_() for t in values]
    dy = torch.ones_like(leaves[0])
    backend = select(torch.device(device)).name if name == "fused" else "chunked"

    def forward() -> object:
        with use_backend(backend), torch.no_grad():
            return function(*leaves)

    def both() -> object:
        with use_backend(backend):
            return torch.autograd.grad(function(*leaves), leaves, dy)

    return forward if what == "forward" else both


def inference(bench: Bench) -> None:
    """Images/s of the models with bfloat16 weights, eager and compiled."""
    for family in bench.plan.families:
        compare_models(bench, family, "inference")


def training(bench: Bench) -> None:
    """Images/s of whole training steps (bfloat16 autocast, AdamW), eager and compiled."""
    for family in bench.plan.families:
        compare_models(bench, family, "training")


def compare_models(bench: Bench, family: str, mode: str) -> None:
    if bench.wrong & {shape.label for shape in bench.plan.scans if shape.batch > 1}:
        bench.note(f"{mode} {family}: the scan is wrong at these shapes; not timed")
        return
    torch.compiler.reset()
    cases: dict[str, Callable[[], object]] = {}
    peaks: dict[str, float] = {}
    for name in bench.plan.families[family]:
        for how in ("eager", "compiled"):
            case = f"{name} {how}"
            try:
                with within(min(60, bench.left())):
                    run = model_case(bench.plan, name, mode, how == "compiled", bench.device)
                    run()
                    peaks[case], cases[case] = peak(run, bench.device), run
            except Exception as error:
                bench.note(f"{mode} {case}: left out: {one_line(error)}")
    if not cases:
        return
    for case, timing in bench.compare(cases, min(20, max(bench.left(), 1))).items():
        images = round(bench.plan.batch / timing.median, 1)
        more = {"batch": bench.plan.batch, "side": bench.plan.side, "images_per_s": images, "peak_mib": peaks[case]}
        bench.add(mode, case, family, timing, **more)


def prepared(name: str, side: int, device: str) -> nn.Module:
    """A model with random weights, in the memory layout that it is meant for; ours arranges its own."""
    torch.manual_seed(0)
    model = load_model(name, image_size=(side, side), device=device)
    return model.to(memory_format=torch.channels_last) if "convnext" in name else model


def model_case(plan: Plan, name: str, mode: str, compiled: bool, device: str) -> Callable[[], object]:
    """What is timed of a model, after its output has been found right.

    Raises:
        ValueError: If it is not.
    """
    model = prepared(name, plan.side, device)
    images = torch.randn(plan.batch, 3, plan.side, plan.side, device=device)
    if "convnext" in name:
        images = images.contiguous(memory_format=torch.channels_last)
    if mode == "inference":
        model, images = model.bfloat16(), images.bfloat16()
    callable_ = torch.compile(model, dynamic=False) if compiled else model
    if mode == "inference":
        check_model(name, model, callable_, images)
    return step(callable_, images, mode == "training", torch.bfloat16 if mode == "training" else None)


@torch.inference_mode()
def check_model(name: str, model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Refuse a model whose output differs between eager and compiled, or between the fused and the portable scan."""
    with use_backend("chunked"):
        expected = model(images).float()
    error = float((run(images).float() - expected).norm() / expected.norm())
    if not error < MODEL_TOLERANCE:
        raise ValueError(f"{name} is wrong by {error:.1e} against its eager, portable form")


def peak(run: Callable[[], object], device: str) -> float | str:
    """MiB that a step needs above what is there before it; empty where nobody can tell."""
    if not device.startswith("cuda"):
        return ""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def growth(bench: Bench) -> None:
    """Time and memory per image against its size, bfloat16 inference at batch 1, as one CUDA graph."""
    for side in bench.plan.sides:
        cases: dict[str, Callable[[], object]] = {}
        peaks: dict[str, float | str] = {}
        for name in bench.plan.growth:
            try:
                with within(min(30, bench.left())):
                    model = prepared(name, side, bench.device).bfloat16()
                    images = torch.randn(1, 3, side, side, device=bench.device, dtype=torch.bfloat16)
                    run = step(model, images, training=False)
                    run()
                    peaks[name], cases[name] = peak(run, bench.device), graphed(run, bench.device)
            except Exception as error:
                bench.note(f"growth of {name} at {side}: left out: {one_line(error)}")
        for name, timing in (bench.compare(cases, 3) if cases else {}).items():
            nanoseconds = round(timing.median / side**2 * 1e9, 3)
            more = {"batch": 1, "side": side, "images_per_s": round(1 / timing.median, 1), "peak_mib": peaks[name]}
            bench.add("growth", name, "inference", timing, note=f"{nanoseconds} ns/pixel", **more)


SECTIONS = {f.__name__: f for f in (correctness, copy, scan, inference, training, growth)}
#: Of the time for everything, what a section is sure of; the rest is for compiling beforehand.
SHARES = {"correctness": 0.1, "copy": 0.01, "scan": 0.12, "inference": 0.17, "training": 0.2, "growth": 0.08}


# --------------------------------------------------------------------------------------------------------------------
# Compiling beforehand, several at a time.


def preparations(plan: Plan, sections: Iterable[str]) -> dict[str, Callable[[str], object]]:
    """What each process compiles, by name: called with the device."""
    found: dict[str, Callable[[str], object]] = {}
    for shape in (*plan.scans, *plan.small):
        found[f"scan {shape.label}"] = functools.partial(_prepare_scan, shape)
    for family in plan.families.values():
        for mode in [mode for mode in MODES if mode in sections]:
            for name in family:
                found[f"{mode} {name}"] = functools.partial(_prepare_model, plan, name, mode)
    return found


def _prepare_scan(shape: Shape, device: str) -> None:
    values = operands(shape, device)
    forward_and_backward([t.requires_grad_() for t in values], torch.ones_like(values[0]))


def _prepare_model(plan: Plan, name: str, mode: str, device: str) -> None:
    for compiled in (False, True) if name.startswith("vmamba") else (True,):
        model_case(plan, name, mode, compiled, device)()


def prepare(bench: Bench, names: list[str], plan_name: str, jobs: int, seconds: float) -> None:
    """Run this file for each name, `jobs` at a time; what is not done in time is compiled later, or left out."""
    end = time.monotonic() + seconds
    settings = {"TORCHINDUCTOR_COMPILE_THREADS": "2", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}

    def run(name: str) -> str | None:
        left = end - time.monotonic()
        if left < 1:
            return f"not compiled beforehand, no time: {name}"
        command = [sys.executable, __file__, "--prepare", name, "--plan", plan_name, "--device", bench.device]
        child = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
            start_new_session=True,
        )
        try:
            _, complaint = child.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # with the compilers that it has started
            child.communicate()
            return f"not compiled beforehand within {seconds:.0f} s: {name}"
        if child.returncode:
            lines = complaint.strip().splitlines()
            return f"not compiled beforehand: {name}: {lines[-1][:300] if lines else child.returncode}"
        return None

    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(run, names):
            if line:
                bench.note(line)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--plan", choices=PLANS, default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=21, help="of every comparison; fewer where its time is over")
    parser.add_argument("--seconds", type=float, default=525, help="for everything")
    parser.add_argument(
        "--jobs", type=int, default=min(12, max(1, (os.cpu_count() or 2) - 2)), help="compiled at a time"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--name", default="gpu", help="of the files there")
    parser.add_argument("--commit", help="where the sources come without their history")
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    if options.rounds < 3:
        parser.error(f"--rounds must be at least 3 for quartiles, got {options.rounds}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU is in reach of PyTorch; --plan smoke --device cpu shows whether the benchmark runs")
    plan = PLANS[options.plan]
    torch.backends.cudnn.benchmark = True
    if options.prepare:
        preparations(plan, SECTIONS)[options.prepare](options.device)
        return 0
    start = time.monotonic()
    bench = Bench(plan, options.device, options.rounds, start + options.seconds)
    sections = options.sections or list(SECTIONS)
    head = environment(options.device) | {"plan": options.plan, "usual way": sequence_scan()[0]}
    if options.commit:
        head["commit"] = options.commit
    for key, value in head.items():
        print(f"{key}: {value}")
    if set(sections) - {"copy", "growth"}:
        names = [name for name in preparations(plan, sections) if select(torch.device(options.device)).name == "triton"]
        prepare(bench, names, options.plan, options.jobs, options.seconds * (1 - sum(SHARES.values())))
        correctness(bench)
        save(bench, options.output, options.name, head)
    for section in sections:
        if section == "correctness":
            continue  # done
        if bench.deadline - time.monotonic() < 3:
            bench.note(f"{section}: left out, no time")
            continue
        bench.section_end = bench.deadline - options.seconds * sum(
            SHARES[s] for s in sections[sections.index(section) + 1 :]
        )
        print(f"— {section}, at most {bench.left():.0f} s", flush=True)
        try:
            SECTIONS[section](bench)
        except Exception as error:
            bench.note(f"{section} broke off: {one_line(error)}")
        save(bench, options.output, options.name, head)
    head["seconds"] = f"{time.monotonic() - start:.0f}"
    save(bench, options.output, options.name, head)
    try:
        draw(bench.rows, options.output / f"{options.name}.png")
    except ImportError:
        print("no picture: matplotlib is not installed here")
    print(f"wrote {options.output / options.name}.csv and .md")
    return int(bool(bench.wrong))


def save(bench: Bench, folder: Path, name: str, head: dict[str, str]) -> None:
    if bench.rows:
        write_csv(folder / f"{name}.csv", bench.rows, head)
    folder.mkdir(parents=True, exist_ok=True)
    text = report(bench.rows, bench.errors, bench.notes, head, name)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
