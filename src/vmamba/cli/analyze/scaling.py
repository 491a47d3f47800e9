"""``vmamba analyze scaling``: time and peak memory of models against resolution, paired."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmamba.analysis import draw
from vmamba.analysis.tables import write_csv
from vmamba.analysis.throughput import environment, measure, peak_memory
from vmamba.cli.analyze.arguments import add_output, add_timing, print_speeds, report, speed_row
from vmamba.cli.arguments import device, positive

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

SIZES = (224, 320, 448, 640)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("scaling", help="the same against resolution")
    add_timing(parser, modes=("inference",))
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=positive,
        default=SIZES,
        metavar="PIXELS",
        help=f"sides of the image (default {' '.join(map(str, SIZES))})",
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    target = device(options.device)
    sizes = [(side, side) for side in sorted(set(options.sizes))]
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
    print_speeds(rows)
    head = environment(target)
    paths = [write_csv(options.output / "scaling.csv", rows, head)]
    report(
        paths
        + draw.scaling(
            rows, options.output / "scaling", f"batch {options.batch_size}, {head['threads']} threads, {target}"
        )
    )
    return 0
