"""``vmamba demo``: a first look."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from vmamba import demo
from vmamba.cli.arguments import add_device, add_output, device, positive

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba demo
  vmamba demo --output first_look --epochs 5"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo", help="train a small model on handwritten digits and look at its predictions", epilog=EXAMPLES
    )
    add_output(parser, "demo")
    parser.add_argument("--epochs", type=positive, default=12, help="default 12, a minute or two on two cores")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    files = demo.run(options.output, epochs=options.epochs, seed=options.seed, device=device(options.device))
    again = ["predict", str(files.images), "--checkpoint", str(files.weights), "--topk", "2"]
    print(f"\nThe saved model on these digits, as anyone would run it:\n\n  vmamba {shlex.join(again)}\n")
    from vmamba.cli import main  # which imports this module

    return main(again)
