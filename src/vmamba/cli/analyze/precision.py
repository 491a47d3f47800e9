"""``vmamba analyze precision``: what bfloat16 and int8 cost and bring, on one's own images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from vmamba.analysis import draw
from vmamba.analysis.throughput import alternate, environment, step
from vmamba.cli.analyze.arguments import output_files, report
from vmamba.cli.any_task import add_model, model_of
from vmamba.cli.arguments import add_json, add_output, positive
from vmamba.cli.printing import print_json
from vmamba.frozen import Comparison, compare, freeze
from vmamba.frozen.comparison import batches
from vmamba.ops import PRECISIONS
from vmamba.tables import Row, write_csv
from vmamba.terminal import console

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba analyze precision photos --checkpoint model.safetensors
  vmamba analyze precision 'photos/*.jpg' --model vmamba_tiny_s1l8 --pretrained --precision int8"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "precision", help="the error and the time of a model frozen in each precision, on a CPU", epilog=EXAMPLES
    )
    parser.add_argument("images", metavar="SOURCE", help="a folder of images, a pattern or a file; 256 images at most")
    add_model(parser)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: all")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="timed images of each (default 5)")
    add_json(parser)
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    table, stem = output_files(options, "precision", ".csv", [options.checkpoint])
    model = model_of(options).eval()
    frozen_models = {precision: freeze(model, precision) for precision in options.precision}
    image = next(batches(model, options.images))
    comparisons = {precision: compare(model, frozen, options.images) for precision, frozen in frozen_models.items()}
    cases = {"eager": step(model, image, training=False)}
    cases |= {precision: step(frozen, image, training=False) for precision, frozen in frozen_models.items()}
    timings = alternate(cases, max(2, options.rounds), warmup=1)
    times = {name: timing.median * 1e3 for name, timing in timings.items()}
    rows = [_row(name, one, times) for name, one in comparisons.items()]
    if options.json:
        print_json(rows)
    else:
        _print(comparisons, times)
    write_csv(table, rows, environment(torch.device("cpu")))
    report([table, *draw.precision(rows, stem, f"{next(iter(comparisons.values())).images} images")])
    return 0


def _row(precision: str, comparison: Comparison, times: dict[str, float]) -> Row:
    return {
        "precision": precision,
        "images": comparison.images,
        "relative_error": f"{comparison.relative_error:.3e}",
        "worst": f"{comparison.worst:.3e}",
        "agreement": "" if comparison.agreement is None else f"{comparison.agreement:.4f}",
        "ms": round(times[precision], 3),
        "ms_eager": round(times["eager"], 3),
    }


def _print(comparisons: dict[str, Comparison], times: dict[str, float]) -> None:
    first = next(iter(comparisons.values()))
    table = Table("precision", f"relative error of the {first.of}", "worst image", f"same {first.counted} class", "ms")
    table.add_row("eager", "", "", "", f"{times['eager']:.1f}", end_section=True)
    for name, one in comparisons.items():
        agreement = "" if one.agreement is None else f"{one.agreement:.2%}"
        table.add_row(name, f"{one.relative_error:.1e}", f"{one.worst:.1e}", agreement, f"{times[name]:.1f}")
    console().print(table)
