"""``vmamba analyze cost``: parameters, multiply-adds and activations."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Column, Table

from vmamba.analysis import draw
from vmamba.analysis.cost import KINDS, LayerCost, cost
from vmamba.analysis.models import load_model
from vmamba.cli.analyze.arguments import add_image_size, output_files, report
from vmamba.cli.arguments import add_json, add_output
from vmamba.cli.printing import print_json
from vmamba.progress import progress_bar
from vmamba.tables import write_csv
from vmamba.terminal import console
from vmamba.zoo import list_models

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba analyze cost
  vmamba analyze cost vmamba_tiny_s1l8 convnext_tiny --image-size 512x1024 --depth 2"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "cost", help="parameters, multiply-adds, activations, per layer and in all", epilog=EXAMPLES
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="ours or timm's (default: all of ours)")
    parser.add_argument("--depth", type=int, default=0, help="levels of modules to print (default 0: the total)")
    add_image_size(parser)
    add_json(parser)
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    table, stem = output_files(options, "cost", ".csv")
    models: dict[str, list[LayerCost]] = {}
    with progress_bar("models") as bar:
        for name in bar.track(options.models or list_models(), description="counting"):
            model = load_model(name, image_size=options.image_size, device="meta")
            models[name] = cost(model, options.image_size)
    image = "{}×{}".format(*options.image_size)
    rows = [_row(name, layer) for name, layers in models.items() for layer in layers]
    if options.json:
        print_json(rows)
    else:
        _print(models, options.depth, f"one image of {image}")
    write_csv(table, rows, {"image": image})
    by_kind = {name: layers[0].macs for name, layers in models.items()}
    report([table, *draw.cost(by_kind, stem, f"Cost of one image of {image}, as the paper counts")])
    return 0


def _row(model: str, layer: LayerCost) -> dict[str, object]:
    row: dict[str, object] = {"model": model, "layer": layer.name, "parameters": layer.parameters}
    row |= {"macs": layer.total_macs} | {f"{kind} macs": layer.macs[kind] for kind in KINDS}
    return row | {"flops": layer.flops, "activations": layer.activations}


def _print(models: Mapping[str, list[LayerCost]], depth: int, title: str) -> None:
    table = Table(Column("model", overflow="fold"), title=title)
    for column in ("parameters", "MACs", "FLOPs", "activations"):
        table.add_column(column, justify="right")
    for name, layers in models.items():
        for layer in layers:
            level = len(layer.name.split(".")) if layer.name else 0
            if level <= depth:
                table.add_row(
                    "  " * level + (layer.name or name),
                    f"{layer.parameters / 1e6:.2f} M",
                    f"{layer.total_macs / 1e9:.3f} G",
                    f"{layer.flops / 1e9:.3f} G",
                    f"{layer.activations / 1e6:.2f} M",
                )
    console().print(table)
