"""A long campaign with broken inputs: which of them are refused, which are read, and which end otherwise.

    python benchmarks/fuzz.py                           # 100,000 inputs of all kinds
    python benchmarks/fuzz.py --kinds coco image        # some kinds
    python benchmarks/fuzz.py --minutes 3               # a part of it; the same command goes on from there
    python benchmarks/fuzz.py --only coco/1234          # one input again, with its traceback
    python benchmarks/fuzz.py --retry                   # those that failed, after mending

Every input is a pure function of its kind, the seed and its number. Processes are limited in memory and time; the input
that ends one is found and counts as a failure. Results: benchmarks/results/fuzz.md.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import sys
import tempfile
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path

from campaign import Record
from paired import RESULTS

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

#: Inputs that a process tries before it is replaced.
CHUNK = 2500
#: Address space of a process, bytes.
MEMORY = 6 << 30
#: Seconds that one input may take.
SECONDS = 20

Chunk = tuple[str, int, int, int]


def main() -> int:
    """Run the campaign and write the results."""
    from support.fuzzing_data import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="over all kinds (default 100000)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after about so long; the next call goes on")
    parser.add_argument("--fresh", action="store_true", help="begin again instead of going on")
    parser.add_argument("--only", metavar="KIND/NUMBER", help="try one input, and show how it ends")
    parser.add_argument("--retry", action="store_true", help="try those again that failed, instead of new ones")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.md", metavar="FILE")
    options = parser.parse_args()
    if options.only:
        return try_one(options.only, options.seed)
    record = Record("fuzz", {"seed": options.seed}, options.minutes, options.fresh)
    if options.retry:
        retry(record)
        write(options.output, record)
        return min(len(record.failures), 1)
    each = -(-options.inputs // len(options.kinds))
    for kind in options.kinds:
        while not record.late and (first := record.counts.get(kind, {}).get("inputs", 0)) < each:
            count = min(CHUNK * options.processes, each - first)
            size = -(-count // options.processes)
            chunks = [(kind, options.seed, n, min(size, first + count - n)) for n in range(first, first + count, size)]
            with record.trying(kind) as counts:
                refused, read, failures = try_chunks(chunks)
                counts.update(inputs=count, refused=refused, read=read, failed=len(failures))
                record.failures += failures
            for failure in failures:
                print(failure, flush=True)
            print(f"{kind}: {counts['inputs']:,} of {each:,} inputs, {counts['failed']} failures", flush=True)
            write(options.output, record)
    return min(len(record.failures), 1)


def retry(record: Record) -> None:
    """Try the inputs again that failed; those that end as they should now count as mended."""
    failed, record.failures = record.failures, []
    for failure in failed:
        kind, rest = failure.split(" ", 1)
        seed, number = map(int, rest.split(":", 1)[0].split("/"))
        with record.trying(kind) as counts:
            refused, read, failures = try_chunks([(kind, seed, number, 1)])
            counts.update(refused=refused, read=read, failed=len(failures) - 1, mended=refused + read)
            record.failures += failures


def try_chunks(chunks: list[Chunk]) -> tuple[int, int, list[str]]:
    """Numbers of refused and of read inputs, and a description of each other one."""
    refused, read, failures = 0, 0, list[str]()
    context = multiprocessing.get_context("spawn")
    while chunks:
        lost: list[Chunk] = []
        with ProcessPoolExecutor(len(chunks), context) as pool:  # new processes: nothing is carried over
            running = [(chunk, pool.submit(try_inputs, *chunk)) for chunk in chunks]
            for chunk, future in running:
                try:
                    results = future.result()
                except BrokenProcessPool:
                    lost.append(chunk)
                    continue
                refused, read, failures = refused + results[0], read + results[1], failures + results[2]
        failures += [f"{kind} {seed}/{first}: the process was lost" for kind, seed, first, count in lost if count == 1]
        chunks = [half for chunk in lost if chunk[3] > 1 for half in halves(chunk)]
    return refused, read, failures


def halves(chunk: Chunk) -> list[Chunk]:
    """The two halves of a chunk in which a process was lost, to find the input."""
    kind, seed, first, count = chunk
    return [(kind, seed, first, count // 2), (kind, seed, first + count // 2, count - count // 2)]


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
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # where no signal reaches: inside a library
            try:
                refused += fuzzer.run(generator(kind, seed, number))
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                reason = " ".join(str(error).split())[:150]
                where = f"{Path(place.filename).name}:{place.lineno}"
                failures.append(f"{kind} {seed}/{number}: {type(error).__name__} at {where}: {reason}")
            signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
    return refused, count - refused - len(failures), failures


def try_one(name: str, seed: int) -> int:
    """Try the input KIND/NUMBER in this process."""
    from support.fuzzing_data import KINDS, generator

    kind, _, number = name.partition("/")
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        refused = KINDS[kind](Path(folder) / kind).run(generator(kind, seed, int(number)))
    print("refused" if refused else "read")
    return 0


def write(path: Path, record: Record) -> None:
    """Write the results as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("pillow", "pydantic", "numpy"))
    lines = [
        "# Broken inputs",
        "",
        f"{record.head()}- more versions: {packages}",
        f"- seed: {record.settings['seed']}",
        "",
        "Each input ends in one line that names the file (refused), is read rightly, or ends otherwise (failed): a "
        f"traceback, a warning, more than {SECONDS} s, more than {MEMORY >> 30} GiB, a lost process.",
        "",
        "| kind | inputs | refused | read | failed | failed at first, mended | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, counts in record.counts.items():
        numbers = [f"{counts[name]:,}" for name in ("inputs", "refused", "read", "failed", "mended")]
        lines.append(f"| {kind} | {' | '.join(numbers)} | {record.seconds[kind] / 60:.1f} |")
    total, mended = (sum(counts[name] for counts in record.counts.values()) for name in ("inputs", "mended"))
    lines.append(f"| all | {total:,} | | | {len(record.failures):,} | {mended:,} | {record.seconds.total() / 60:.1f} |")
    if record.failures:
        lines += ["", "Failures:", "", *(f"- {failure}" for failure in record.failures[:50])]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
