"""``vmamba analyze throughput``: images per second and peak memory of models, paired."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmamba.analysis import draw
from vmamba.analysis.tables import write_csv
from vmamba.analysis.throughput import environment, measure, peak_memory
from vmamba.cli.analyze.arguments import add_image_size, add_output, add_timing, print_speeds, report, speed_row
from vmamba.cli.arguments import device, positive

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("throughput", help="images per second and peak memory, models taking turns")
    add_timing(parser)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="default 8")
    add_image_size(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    target = device(options.device)
    rows = []
    for mode in options.mode:
        training = mode == "training"
        speeds = measure(
            options.models,
            [options.image_size],
            options.batch_size,
            training=training,
            rounds=options.rounds,
            channels_last=options.channels_last,
            device=target,
        )
        for speed in speeds:
            (memory,) = peak_memory(
                speed.model, [options.image_size], options.batch_size, training=training, device=target
            )
            rows.append(speed_row(speed, memory))
    print_speeds(rows)
    head = environment(target)
    paths = [write_csv(options.output / "throughput.csv", rows, head)]
    title = "{}×{}, batch {}".format(*options.image_size, options.batch_size)
    report(paths + draw.throughput(rows, options.output / "throughput", f"{title}, {head['threads']} threads"))
    return 0
