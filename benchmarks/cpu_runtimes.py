"""VMamba's frozen form on a CPU against its peers in the runtimes that people take: the whole record.

    python benchmarks/cpu_runtimes.py                    everything, the most important first; goes on where it stopped
    python benchmarks/cpu_runtimes.py --minutes 25       what fits into 25 minutes
    python benchmarks/cpu_runtimes.py --only growth      one section
    python benchmarks/cpu_runtimes.py --rounds 0         exports and compiles, which is kept for the next call

Ours eager, compiled, and frozen in float32, bfloat16 and int8; Swin-T, ConvNeXt-T, DeiT-S and MambaOut-T eager,
compiled, in ONNX Runtime (float32; int8, dynamic, of linear layers) and OpenVINO (float32, bfloat16; int8 would need
nncf). A section is a process of its own, in which all cases take turns; every case is compared with eager PyTorch
before it is timed. All sections of inference have frozen forms in common. Rows are saved after
every section, those of memory and growth one by one; what is in the file is not measured again. Stop other work first;
report ratios, not absolute times.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import functools
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cpu import FROZEN as OURS_FROZEN
from cpu import OURS, PEERS, Row, row, show, train_step
from paired import RESULTS, Timing, alternate, environment, write_csv
from runtime_cases import FROZEN, RUNTIMES, Case, build, create, error

SWIN, CONVNEXT, MAMBAOUT, DEIT = PEERS
EAGER = ("eager", "compiled")
SIZES = (512, 1024, 2048, 4096)


def cases(**ways: Sequence[str]) -> list[Case]:
    """Cases of models (``ours``, ``swin``, ``convnext``, ``mambaout``, ``deit``)."""
    names = {"ours": OURS, "swin": SWIN, "convnext": CONVNEXT, "mambaout": MAMBAOUT, "deit": DEIT}
    return [Case(names[name], way) for name, chosen in ways.items() for way in chosen]


class Section(NamedTuple):
    """What is measured in one process.

    Attributes:
        kind: ``"inference"``, ``"training"``, ``"growth"`` or ``"memory"``.
        cases: What takes turns; for growth none.
        batch: Images.
        threads: Of every runtime.
        timing: Seconds after which timing stops, but not before the third round.
        seconds: Estimate of everything, with exporting and compiling, on two idle cores.
    """

    kind: str
    cases: list[Case]
    batch: int
    threads: int
    timing: int
    seconds: int


_PEERS = cases(swin=("eager", *RUNTIMES), convnext=("eager", *RUNTIMES))
_OURS = cases(ours=("eager", *FROZEN))
_OTHERS = cases(ours=FROZEN, deit=("eager", *RUNTIMES), mambaout=("eager", *RUNTIMES))
_COMPILED = cases(ours=("compiled", *FROZEN), swin=["compiled"], convnext=["compiled"])
_HALF = {"eager": ["eager bfloat16"], "compiled": ["compiled bfloat16"]}
#: The most important first.
SECTIONS = {
    "batch 1": Section("inference", _OURS + _PEERS, 1, 2, 75, 150),
    "batch 8": Section(
        "inference", _OURS + _PEERS + cases(swin=_HALF["eager"], convnext=_HALF["eager"]), 8, 2, 110, 240
    ),
    "compiled, batch 1": Section("inference", _COMPILED, 1, 2, 20, 150),
    "compiled, batch 8": Section(
        "inference", _COMPILED + cases(swin=_HALF["compiled"], convnext=_HALF["compiled"]), 8, 2, 45, 300
    ),
    "others, batch 1": Section("inference", _OTHERS, 1, 2, 25, 110),
    "others, batch 8": Section("inference", _OTHERS, 8, 2, 50, 170),
    "1 thread, batch 1": Section("inference", _OURS + _PEERS, 1, 1, 25, 60),
    "1 thread, batch 8": Section("inference", _OURS + _PEERS, 8, 1, 50, 120),
    "growth": Section("growth", [], 1, 2, 0, 170),
    "training": Section("training", cases(ours=["eager"], swin=["eager"], convnext=["eager"]), 8, 2, 30, 60),
    "training, compiled": Section("training", cases(ours=EAGER, swin=EAGER, convnext=EAGER), 8, 2, 40, 300),
    "memory, batch 1": Section("memory", _OURS + _PEERS, 1, 2, 0, 60),
    "memory, batch 8": Section("memory", _OURS + _PEERS, 8, 2, 0, 90),
}


class Record:
    """The rows of a file; those that are there already are kept."""

    def __init__(self, name: str) -> None:
        self.file = RESULTS / f"{name}.csv"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.rows: list[Row] = [dict(r) for r in csv.DictReader(line for line in lines if not line.startswith("#"))]

    def has(self, section: str, case: str | None = None) -> bool:
        """True if there is a row of a section, or of a case in it."""
        return any(r["section"] == section and case in (None, r["case"]) for r in self.rows)

    def add(self, *rows: Row) -> None:
        self.rows += rows
        write_csv(self.file, self.rows, environment())


def infer(name: str, section: Section, record: Record, rounds: int) -> None:
    """Time cases that take turns; one that a runtime refuses is named and left out."""
    runs, errors = {}, {}
    for case in section.cases:
        try:
            run = build(case, section.batch, section.threads)
            errors[str(case)] = error(run, case, section.batch)
        except Exception as problem:
            print(f"{case}: left out: {str(problem).splitlines()[0]}", flush=True)
            continue
        runs[str(case)] = run
        print(f"{case}: relative error {errors[str(case)]:.1e}", flush=True)
    if not rounds:
        return
    timings = alternate(runs, rounds, seconds=section.timing, settle=True)
    notes = {case: {"threads": section.threads, "error": f"{value:.1e}"} for case, value in errors.items()}
    record.add(*(row(name, case, section.batch, timing, **notes[case]) for case, timing in timings.items()))


def train(name: str, section: Section, record: Record, rounds: int) -> None:
    """Time training steps: forward, backward, AdamW."""
    x, y = torch.randn(section.batch, 3, 224, 224), torch.randint(1000, (section.batch,))
    runs = {}
    for case in section.cases:
        model = create(case.model).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        fast: Any = torch.compile(model) if case.way == "compiled" else model
        run = functools.partial(train_step, fast, optimizer, x, y)
        try:
            run()
        except Exception as problem:
            print(f"{case}: left out: {str(problem).splitlines()[0]}", flush=True)
            continue
        runs[str(case)] = run
        print(f"{case}: ready", flush=True)
    if not rounds:
        return
    timings = alternate(runs, rounds, warmup=1, seconds=section.timing)
    record.add(*(row(name, case, section.batch, t, threads=section.threads) for case, t in timings.items()))


def grow(name: str, section: Section, record: Record, rounds: int) -> None:
    """Time and memory of the frozen form per pixel, each size in a process of its own; ratios are to the smallest."""
    for size in SIZES if rounds > 2 else SIZES[:rounds]:
        case = f"{OURS_FROZEN}, {size}"
        if record.has(name, case):
            continue
        command = [sys.executable, str(Path(__file__).with_name("cpu.py")), "--measure", OURS_FROZEN, str(size)]
        done = subprocess.run([*command, str(section.threads)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{case}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        median, low, high, memory = map(float, done.stdout.split())
        pixels = size * size
        figures = {"ns/pixel": f"{median / pixels * 1e9:.0f}", "bytes/pixel": f"{memory / pixels:.0f}"}
        record.add(row(name, case, 1, Timing(median, low, high), threads=section.threads, **figures))
        print(f"{case}: {figures}", flush=True)


def remember(name: str, section: Section, record: Record, rounds: int) -> None:
    """Peak resident memory of each case in a child, above that of the process with all libraries loaded."""
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401

    fork = multiprocessing.get_context("fork")  # nothing has been computed here: there are no threads
    for case in section.cases if rounds else []:
        if record.has(name, str(case)):
            continue
        received, sent = fork.Pipe(duplex=False)
        child = fork.Process(target=_measure_memory, args=(case, section.batch, section.threads, sent))
        child.start()
        sent.close()
        try:
            weights, peak = received.recv()
        except EOFError:
            print(f"{case}: left out", flush=True)
            continue
        finally:
            child.join()
        figures = {"loaded_mib": round(weights / 2**20), "peak_mib": round(peak / 2**20)}
        record.add(row(name, str(case), section.batch, Timing(1, 1, 1), **figures) | dict.fromkeys(_TIMES, ""))
        print(f"{case}: {figures}", flush=True)


_TIMES = ("ms", "ms_low", "ms_high", "images_per_s")


def _measure_memory(case: Case, batch: int, threads: int, sent: Any) -> None:
    def resident(key: str) -> int:
        return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024

    torch.set_num_threads(threads)
    before = resident("VmRSS")
    run = build(case, batch, threads)
    ctypes.CDLL(None).malloc_trim(0)  # what loading left in the allocator
    loaded = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of loading
    for _ in range(3):
        run()
    sent.send((loaded - before, resident("VmHWM") - before))


KINDS = {"inference": infer, "training": train, "growth": grow, "memory": remember}


def orchestrate(options: argparse.Namespace) -> None:
    """Every section that fits into the time, in a process of its own."""
    end = time.monotonic() + 60 * options.minutes
    todo = [n for n in SECTIONS if not Record(options.name).has(n) or SECTIONS[n].kind in ("growth", "memory")]
    total = sum(SECTIONS[name].seconds for name in todo)
    print(f"{len(todo)} sections, {total / 60:.0f} minutes with exporting and compiling; {options.minutes} allowed")
    for name in todo:
        left = end - time.monotonic()
        if left < SECTIONS[name].seconds:
            print(f"{name}: left out, {left:.0f} s are left and it takes about {SECTIONS[name].seconds}", flush=True)
            continue
        start = time.monotonic()
        command = [sys.executable, __file__, "--only", name, "--name", options.name, "--rounds", str(options.rounds)]
        env = os.environ | {"OMP_NUM_THREADS": str(SECTIONS[name].threads)}
        subprocess.run(command, env=env, check=False)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, help="one section, in this process")
    parser.add_argument("--minutes", type=float, default=60, help="leave out sections that end later (default 60)")
    parser.add_argument("--rounds", type=int, default=15, help="0 to export, compile and check only")
    parser.add_argument("--name", default="cpu_runtimes", help="of the file in results/")
    options = parser.parse_args()
    if options.only:
        section = SECTIONS[options.only]
        torch.set_num_threads(section.threads)
        KINDS[section.kind](options.only, section, Record(options.name), options.rounds)
        return
    orchestrate(options)
    if rows := Record(options.name).rows:
        show(rows)


if __name__ == "__main__":
    main()
