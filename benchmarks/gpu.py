"""VMamba on a GPU: the scan against its floor and the unfused pipeline, the models against their peers in timm.

    python benchmarks/gpu.py                          everything; the same command goes on where an earlier one ended
    python benchmarks/gpu.py scan growth              two of its steps, again
    python benchmarks/gpu.py --plan smoke --device cpu    tiny shapes: does it run?

The most important comes first, everything is on the disk after every row, and the last lines say of each goal whether
it was reached, missed by how much, or not measured and why. First every scan is compared with the portable one in
float64, forward and all gradients, and a wrong one is not timed. Each step runs in a process of its own with a time
limit; what it needs compiled is compiled beforehand in others, several at a time, and comes from the compilers' caches
afterwards. Cases of a comparison take turns: medians and quartiles of the GPU's own clock. What fails becomes a row
that says why.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from gpu_bench.children import follow_parent
from gpu_bench.conduct import Conductor, summary
from gpu_bench.context import Context
from gpu_bench.plan import PLANS
from gpu_bench.record import Record
from gpu_bench.report import draw
from gpu_bench.steps import schedule
from paired import RESULTS, environment


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="step", help="run these again; default: all that have not run yet")
    parser.add_argument("--plan", choices=PLANS, default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=21, help="of every comparison; fewer where its time is over")
    parser.add_argument("--seconds", type=float, default=570, help="for this run of the command")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--name", default="gpu", help="of the files there")
    parser.add_argument("--commit", help="where the sources come without their history")
    parser.add_argument("--afresh", action="store_true", help="forget what earlier runs measured")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    plan = PLANS[options.plan]
    steps = schedule(plan)
    unknown = [name for name in options.steps if name not in steps]
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}; choose from {', '.join(map(repr, steps))}")
    if options.rounds < 3:
        parser.error(f"--rounds must be at least 3 for quartiles, got {options.rounds}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU is in reach of PyTorch; --plan smoke --device cpu shows whether the benchmark runs")
    if name := options.run or options.prepare:
        follow_parent()
        torch.backends.cudnn.benchmark = True
        context = Context(plan, name, tuple(options.cases), options.device, options.rounds)
        if options.run:
            steps[name].run(context)
        elif prepare := steps[name].prepare:
            prepare(context, *options.cases)
        return 0
    start = time.monotonic()
    head = environment(options.device) | {"plan": options.plan}
    if options.commit:
        head["commit"] = options.commit
    record = Record(plan, options.output, options.name, head)
    if not options.afresh and record.resume():
        print(f"going on after {', '.join(record.outcomes) or 'nothing'}")
    for key, value in head.items():
        print(f"{key}: {value}")
    given = ("--plan", options.plan, "--device", options.device, "--rounds", str(options.rounds))
    conductor = Conductor(record, steps, given, start + options.seconds)
    conductor.conduct(options.steps or list(steps), again=bool(options.steps))
    record.save()
    try:
        draw(record.rows, options.output / f"{options.name}.png")
    except ImportError:
        print("no picture: matplotlib is not installed here")
    print(summary(record))
    print(f"wrote {options.output / options.name}.json, .csv and .md")
    return int(any(row["status"].startswith("wrong") for row in record.rows))


if __name__ == "__main__":
    sys.exit(main())
