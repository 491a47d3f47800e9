"""``vmamba analyze scans``: the scan patterns, trained alike."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from vmamba.analysis import draw
from vmamba.analysis.scans import PATTERNS, TASKS, Outcome, accuracy, summary, train, untrained
from vmamba.checkpoints.saving import save_weights
from vmamba.cli.analyze.arguments import output_files, report
from vmamba.cli.arguments import add_output, positive
from vmamba.progress import progress_bar
from vmamba.tables import Row, write_csv
from vmamba.terminal import console

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba analyze scans --tasks direction --seeds 1 --steps 100"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "scans", help="train the scan patterns alike on built-in tasks and compare them", epilog=EXAMPLES
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=("direction", "digits"), help="default: direction digits"
    )
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=PATTERNS, help="default: all")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="models per pattern (default 3)")
    parser.add_argument("--steps", type=positive, default=300, metavar="N", help="of 64 images each (default 300)")
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    weights: list[Path] = []
    target, stem = output_files(options, "scans", ".csv")
    head = {"steps": str(options.steps), "torch": torch.__version__}
    # Seed by seed, each model written down when it is done: an interrupted study is a smaller study.
    runs = [(seed, pattern) for seed in range(options.seeds) for pattern in options.patterns]
    with progress_bar("steps") as bar:
        bar_task = bar.add_task("", total=len(options.tasks) * len(runs) * options.steps)
        for name in options.tasks:
            bar.update(bar_task, description=f"drawing {name}")
            task = TASKS[name]()
            for seed, pattern in runs:
                model = untrained(pattern, task, seed)
                for loss in train(model, task, steps=options.steps, seed=seed):
                    bar.update(bar_task, advance=1, description=f"{name} {pattern} seed {seed} loss {loss:.3f}")
                outcomes += [Outcome(t, pattern, seed, accuracy(model, examples)) for t, examples in task.tests.items()]
                write_csv(target, _rows(outcomes), head)
                if seed == 0:
                    weights.append(save_weights(model, options.output / f"{name}_{pattern}.safetensors"))
    rows = summary(outcomes)
    table = Table(*rows[0], title="accuracy on test images, %")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console().print(table)
    title = f"scan patterns trained alike, {options.steps} steps"
    report([target, *weights, *draw.scans(rows, _rows(outcomes), stem, title)])
    return 0


def _rows(outcomes: Sequence[Outcome]) -> list[Row]:
    return [{"test": o.test, "scan": o.scan, "seed": o.seed, "accuracy": round(o.accuracy, 5)} for o in outcomes]
