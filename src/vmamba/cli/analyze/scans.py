"""``vmamba analyze scans``: the scan patterns, trained alike."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from vmamba.analysis import draw
from vmamba.checkpoints.saving import save_weights
from vmamba.cli.analyze.arguments import output_files, report
from vmamba.cli.arguments import add_device, add_json, add_output, device, positive
from vmamba.cli.printing import print_json
from vmamba.progress import progress_bar
from vmamba.studies.problems import PROBLEMS
from vmamba.studies.scans import PATTERNS, Outcome, ScanOptions, accuracy, summary, train_pattern
from vmamba.tables import Row, write_csv
from vmamba.terminal import console
from vmamba.training.distributed import Processes

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba analyze scans --tasks direction --seeds 1 --steps 100"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "scans", help="train the scan patterns alike on built-in tasks and compare them", epilog=EXAMPLES
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=PROBLEMS, default=("direction", "digits"), help="default: direction digits"
    )
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS, help="default: all")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="models per pattern (default 3)")
    parser.add_argument("--steps", type=positive, default=300, metavar="N", help="of 64 images each (default 300)")
    add_device(parser)
    add_json(parser)
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    weights: list[Path] = []
    target, stem = output_files(options, "scans", ".csv")
    processes = Processes(device(options.device))
    head = {"steps": str(options.steps), "torch": torch.__version__, "device": str(processes.device)}
    # Seed by seed, each model written down when it is done: an interrupted study is a smaller study, and goes on.
    runs = [(seed, pattern) for seed in range(options.seeds) for pattern in options.patterns]
    with progress_bar("models") as bar:
        bar_task = bar.add_task("", total=len(options.tasks) * len(runs))
        for name in options.tasks:
            bar.update(bar_task, description=f"drawing {name}")
            problem = PROBLEMS[name]()
            for seed, pattern in runs:
                bar.update(bar_task, description=f"{name} {pattern} seed {seed}")
                folder = options.output / "runs" / f"{name}_{pattern}_seed{seed}_{options.steps}_steps"
                chosen = ScanOptions(problem=name, scan=pattern, steps=options.steps)
                model = train_pattern(problem, chosen, seed, folder, processes)
                outcomes += [Outcome(t, pattern, seed, accuracy(model, test)) for t, test in problem.tests.items()]
                write_csv(target, _rows(outcomes), head)
                if seed == 0:
                    weights.append(save_weights(model, options.output / f"{name}_{pattern}.safetensors"))
                bar.advance(bar_task)
    rows = summary(outcomes)
    table = Table(*rows[0], title="accuracy on test images, %")
    for row in rows:
        table.add_row(*map(str, row.values()))
    if options.json:
        print_json(rows)
    else:
        console().print(table)
    title = f"scan patterns trained alike, {options.steps} steps"
    report([target, *weights, *draw.scans(rows, _rows(outcomes), stem, title)])
    return 0


def _rows(outcomes: Sequence[Outcome]) -> list[Row]:
    return [{"test": o.test, "scan": o.scan, "seed": o.seed, "accuracy": round(o.accuracy, 5)} for o in outcomes]
