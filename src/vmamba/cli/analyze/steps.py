"""``vmamba analyze steps``: the paper's acceleration study as a benchmark."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rich.table import Table

from vmamba.analysis import draw
from vmamba.analysis.steps import acceleration_steps, measure_steps
from vmamba.analysis.throughput import environment
from vmamba.cli.analyze.arguments import MODES, add_image_size, output_files, remark_on_spread, report
from vmamba.cli.arguments import add_device, add_json, add_output, device, positive
from vmamba.cli.printing import print_json
from vmamba.tables import write_csv
from vmamba.terminal import console

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba analyze steps --batch-size 8 --rounds 3"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("steps", help="from the vanilla block to the fast one, step by step", epilog=EXAMPLES)
    parser.add_argument("--mode", choices=MODES, default="inference", help="default inference")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="default 1")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="timed runs of each (default 5)")
    add_device(parser)
    add_image_size(parser)
    add_json(parser)
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    file, stem = output_files(options, "steps", ".csv")
    target = device(options.device)
    results = measure_steps(
        acceleration_steps(target),
        options.image_size,
        options.batch_size,
        training=options.mode == "training",
        rounds=options.rounds,
        device=target,
    )
    rows = [
        {
            "step": result.step.name,
            "backend": result.step.backend,
            "parameters": result.cost.parameters,
            "macs": result.cost.total_macs,
            "batch": result.batch,
            "images_per_s": round(result.images_per_second, 3),
            "ms": round(result.timing.median * 1e3, 3),
            "ms_low": round(result.timing.low * 1e3, 3),
            "ms_high": round(result.timing.high * 1e3, 3),
            "ms_slowest": round(result.timing.slowest * 1e3, 3),
        }
        for result in results
    ]
    table = Table("step", "scan", "parameters", "MACs", "images/s", "ms (quartiles; slowest)")
    for result, row in zip(results, rows, strict=True):
        size, macs = f"{result.cost.parameters / 1e6:.1f} M", f"{result.cost.total_macs / 1e9:.2f} G"
        times = f"{row['ms']:.4g} ({row['ms_low']:.4g} – {row['ms_high']:.4g}; {row['ms_slowest']:.4g})"
        table.add_row(result.step.name, result.step.backend, size, macs, f"{result.images_per_second:.3g}", times)
    if options.json:
        print_json(rows)
    else:
        console().print(table)
    remark_on_spread([(r.step.name, r.timing.slowest / r.timing.median) for r in results])
    head = environment(target) | {"mode": options.mode}
    write_csv(file, rows, head)
    title = "{}×{}, batch {}, {}, {} threads".format(
        *options.image_size, options.batch_size, options.mode, head["threads"]
    )
    report([file, *draw.steps(rows, stem, title)])
    return 0
