"""A long campaign with broken inputs: which of them are refused, which are read, and which end otherwise.

    python benchmarks/fuzz.py --inputs 100000 --kinds coco image label_map tar recipe checkpoint

Every input is a pure function of its kind, the seed and its number, so that any can be tried again with ``--first``.
Processes are limited in memory and time; one that is lost counts as a failure. Results: benchmarks/results/fuzz.md.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import platform
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

#: Inputs that a process tries before it is replaced.
CHUNK = 500
#: Address space of a process, bytes.
MEMORY = 6 << 30
#: Seconds that one input may take.
SECONDS = 20


def main() -> None:
    """Run the campaign and write the results."""
    from support.fuzzing_data import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="over all kinds (default 100000)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first input of each kind")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.md", metavar="FILE")
    options = parser.parse_args()
    each = -(-options.inputs // len(options.kinds))
    chunks = [
        (kind, options.seed, first, min(CHUNK, options.first + each - first))
        for kind in options.kinds
        for first in range(options.first, options.first + each, CHUNK)
    ]
    counts = {kind: collections.Counter[str]() for kind in options.kinds}
    failures: list[str] = []
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    for first in range(0, len(chunks), options.processes):
        with ProcessPoolExecutor(options.processes, context) as pool:  # new processes: nothing is carried over
            running = [(chunk, pool.submit(try_inputs, *chunk)) for chunk in chunks[first : first + options.processes]]
            for chunk, future in running:
                try:
                    refused, read, found = future.result()
                except BrokenProcessPool:
                    refused, read, found = 0, 0, [f"{chunk}: the process was lost"]
                counts[chunk[0]].update(refused=refused, read=read, failed=len(found))
                failures += found
                for failure in found:
                    print(failure, flush=True)
        done = sum(counter.total() for counter in counts.values())
        print(f"{done:,} of {each * len(options.kinds):,} inputs, {len(failures)} failures", flush=True)
    write(options.output, options, counts, failures, time.perf_counter() - start)


def try_inputs(kind: str, seed: int, first: int, count: int) -> tuple[int, int, list[str]]:
    """Numbers of refused and of read inputs, and a description of each other one; in a process of its own."""
    import resource
    import signal

    from support.fuzzing_data import KINDS, generator

    def late(*_: object) -> None:
        raise TimeoutError("took too long")

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("error")
    refused, failures = 0, []
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = KINDS[kind](Path(folder) / kind)
        for number in range(first, first + count):
            signal.alarm(SECONDS)
            try:
                refused += fuzzer.run(generator(kind, seed, number))
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                reason = " ".join(str(error).split())[:150]
                where = f"{Path(place.filename).name}:{place.lineno}"
                failures.append(f"{kind} {seed}/{number}: {type(error).__name__} at {where}: {reason}")
            signal.alarm(0)
    return refused, count - refused - len(failures), failures


def write(
    path: Path,
    options: argparse.Namespace,
    counts: dict[str, collections.Counter[str]],
    failures: list[str],
    seconds: float,
) -> None:
    """Write the results as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("pillow", "pydantic", "numpy", "torch"))
    command = f"--inputs {options.inputs} --seed {options.seed} --kinds {' '.join(options.kinds)}"
    lines = [
        "# Broken inputs",
        "",
        f"`python benchmarks/fuzz.py {command}`",
        "",
        f"Python {platform.python_version()}, {packages}; {seconds / 60:.0f} minutes, {options.processes} process(es). "
        "Each input ends in one line (refused), is read rightly, or ends otherwise (failed): a traceback, a warning, "
        f"more than {SECONDS} s, or a lost process.",
        "",
        "| kind | inputs | refused | read | failed |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, counter in counts.items():
        lines.append(
            f"| {kind} | {counter.total():,} | {counter['refused']:,} | {counter['read']:,} | {counter['failed']:,} |"
        )
    if failures:
        lines += ["", "Failures:", "", *(f"- {failure}" for failure in failures[:50])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
