"""``vmamba analyze throughput``: images per second and peak memory of models, paired."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmamba.analysis import draw
from vmamba.analysis.throughput import environment, measure, peak_memory
from vmamba.cli.analyze.arguments import add_image_size, add_timing, output_files, print_speeds, report, speed_row
from vmamba.cli.arguments import add_json, add_output, device, positive
from vmamba.errors import OptionError
from vmamba.model.variants import VARIANTS
from vmamba.ops import PRECISIONS
from vmamba.tables import write_csv

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba analyze throughput
  vmamba analyze throughput vmamba_tiny_s1l8 resnet50 --mode inference --batch-size 1 --rounds 21
  vmamba analyze throughput vmamba_tiny_s1l8 model.onnx --mode inference
  vmamba analyze throughput vmamba_tiny_s1l8 --mode inference --precision float32 bfloat16 int8"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "throughput", help="images per second and peak memory, models taking turns", epilog=EXAMPLES
    )
    add_timing(parser)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="default 8")
    add_image_size(parser)
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=[],
        help="time our models frozen, too, in these precisions; bfloat16 and int8 are for the CPU",
    )
    add_json(parser)
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    table, stem = output_files(options, "throughput", ".csv")
    target = device(options.device)
    if options.precision and "inference" not in options.mode:
        raise OptionError("--precision is of frozen models, which are for inference; add --mode inference")
    rows = []
    for mode in options.mode:
        training = mode == "training"
        names = list(options.models) if training else _with_frozen(options.models, options.precision)
        speeds = measure(
            names,
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
    print_speeds(rows, as_json=options.json)
    head = environment(target)
    write_csv(table, rows, head)
    title = "{}×{}, batch {}".format(*options.image_size, options.batch_size)
    report([table, *draw.throughput(rows, stem, f"{title}, {head['threads']} threads")])
    return 0


def _with_frozen(names: Sequence[str], precisions: Sequence[str]) -> list[str]:
    """The names, and after each of our models its frozen forms."""
    forms = {name: [f"{name} frozen {precision}" for precision in precisions] for name in names if name in VARIANTS}
    return [form for name in names for form in (name, *forms.get(name, []))]
