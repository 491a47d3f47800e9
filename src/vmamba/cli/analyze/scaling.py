"""``vmamba analyze scaling``: time and peak memory of models against resolution, paired."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmamba.analysis import draw
from vmamba.analysis.throughput import environment, measure, peak_memory
from vmamba.cli.analyze.arguments import add_timing, output_files, print_speeds, report, speed_row
from vmamba.cli.arguments import add_json, add_output, device, positive
from vmamba.tables import write_csv

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

SIZES = (224, 320, 448, 640)

EXAMPLES = """examples:
  vmamba analyze scaling vmamba_tiny_s1l8 swin_tiny_patch4_window7_224 --sizes 224 448 896"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("scaling", help="the same against resolution", epilog=EXAMPLES)
    add_timing(parser, modes=("inference",))
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=positive,
        default=SIZES,
        metavar="PIXELS",
        help=f"height and width of the image (default {' '.join(map(str, SIZES))})",
    )
    add_json(parser)
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    table, stem = output_files(options, "scaling", ".csv")
    target = device(options.device)
    sizes = [(size, size) for size in sorted(set(options.sizes))]
    rows = []
    for mode in options.mode:
        training = mode == "training"
        memory = {
            name: dict(
                zip(sizes, peak_memory(name, sizes, options.batch_size, training=training, device=target), strict=True)
            )
            for name in options.models
        }
        speeds = measure(
            options.models,
            sizes,
            options.batch_size,
            training=training,
            rounds=options.rounds,
            channels_last=options.channels_last,
            device=target,
        )
        rows += [speed_row(speed, memory[speed.model][speed.image_size]) for speed in speeds]
    print_speeds(rows, as_json=options.json)
    head = environment(target)
    write_csv(table, rows, head)
    title = f"batch {options.batch_size}, {head['threads']} threads, {target}"
    report([table, *draw.scaling(rows, stem, title)])
    return 0
