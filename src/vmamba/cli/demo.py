"""``vmamba demo``: a first look."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from vmamba import demo
from vmamba.cli.arguments import add_device, add_output, device, positive
from vmamba.progress import remark

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba demo
  vmamba demo --output first_look --epochs 5"""

NEXT = """
To try next:

  vmamba explore --output site                       the same, token by token, in a browser
  vmamba train --data photos --model vmamba_pico     your own images, one folder per class
  vmamba export --checkpoint {weights} --output digits.onnx
  vmamba --help                                      all commands; each has examples at its end"""


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
    weights = ["--checkpoint", str(files.weights)]
    sheet = ["--picture", str(options.output / "sheet.png"), "--overwrite"]
    status = _as_anyone(
        "The saved model on these digits, as anyone would run it:",
        ["predict", str(files.images), *weights, "--topk", "2", *sheet],
    )
    status = status or _as_anyone(
        "What its tokens gather on each of the four routes, on a photograph of which it knows nothing:",
        ["analyze", "attention", str(files.photograph), *weights, "--output", str(options.output / "attention")],
    )
    if not status:
        for line in NEXT.format(weights=shlex.quote(str(files.weights))).splitlines():
            remark(line)
    return status


def _as_anyone(what: str, command: list[str]) -> int:
    """Run a command in this process, shown as it would be typed."""
    from vmamba.cli import main  # which imports this module

    print(f"\n{what}\n\n  vmamba {shlex.join(command)}\n", flush=True)
    return main(command)
