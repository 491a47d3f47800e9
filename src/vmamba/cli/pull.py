"""``vmamba pull``: weights from the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.integrations.hub import pull
from vmamba.progress import remark

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba pull me/cats-and-dogs --output weights"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("pull", help="download weights from the Hugging Face Hub", epilog=EXAMPLES)
    parser.add_argument("repo", metavar="NAME/MODEL")
    parser.add_argument("--output", type=Path, default=Path("weights"), metavar="FOLDER", help="default: weights")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: main)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    remark(f"wrote {pull(options.repo, options.output, revision=options.revision)}")
    return 0
