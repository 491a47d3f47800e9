"""``vmamba models``: the models that there are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from rich.table import Table

from vmamba.model.backbone import VMamba
from vmamba.model.variants import VARIANTS
from vmamba.terminal import console

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba models"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("models", help="list the models", epilog=EXAMPLES)
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    table = Table("model", "parameters", "top-1 %", "input", "weights", title="ImageNet-1K classifiers")
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in VMamba(variant.config).parameters())
        top1 = f"{variant.top1:.1f}" if variant.top1 else "–"
        table.add_row(name, f"{parameters / 1e6:.1f} M", top1, "224×224", "the authors'" if variant.url else "none")
    console().print(table)
    return 0
