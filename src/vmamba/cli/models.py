"""``vmamba models``: the models that there are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from vmamba.cli.arguments import add_json
from vmamba.cli.printing import print_json
from vmamba.model.backbone import VMamba
from vmamba.model.variants import VARIANTS
from vmamba.terminal import console

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba models
  vmamba models --json"""

#: Height and width of the input at which the results were published.
INPUT = 224


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("models", help="list the models", epilog=EXAMPLES)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    records: list[dict[str, Any]] = []
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in VMamba(variant.config).parameters())
        facts = {"parameters": parameters, "top1": variant.top1, "image_size": INPUT, "weights": variant.url or None}
        records.append({"model": name, **facts})
    if options.json:
        print_json(records)
        return 0
    table = Table("model", "parameters", "top-1 %", "input", "weights", title="ImageNet-1K classifiers")
    for row in records:
        top1 = f"{row['top1']:.1f}" if row["top1"] else "–"
        weights = "the authors'" if row["weights"] else "none"
        table.add_row(row["model"], f"{row['parameters'] / 1e6:.1f} M", top1, f"{INPUT}×{INPUT}", weights)
    console().print(table)
    return 0
