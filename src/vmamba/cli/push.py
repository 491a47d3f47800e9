"""``vmamba push``: weights to the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.integrations.hub import push_to_hub
from vmamba.progress import remark

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba push runs/photos/weights/model.safetensors me/cats-and-dogs --licence mit --private"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("push", help="put weights and a model card on the Hugging Face Hub", epilog=EXAMPLES)
    parser.add_argument("weights", type=Path, metavar="FILE", help=".safetensors with its description beside it")
    parser.add_argument("repo", metavar="NAME/MODEL", help="made where there is none")
    parser.add_argument("--licence", default="other", metavar="NAME", help="of the weights: mit, apache-2.0 …")
    parser.add_argument("--private", action="store_true", help="make a repository that others do not see")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    remark(push_to_hub(options.weights, options.repo, licence=options.licence, private=options.private))
    return 0
