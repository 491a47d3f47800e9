"""``vmamba analyze erf``: effective receptive fields, before and after training."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.table import Table
from torch import Tensor, nn

from vmamba.analysis import draw
from vmamba.analysis.erf import LEVELS, ReceptiveField, receptive_field
from vmamba.analysis.images import load_image
from vmamba.analysis.models import load_model
from vmamba.cli.analyze.arguments import PEERS, add_image_size, output_files, report
from vmamba.cli.arguments import add_device, add_json, add_max_pixels, add_output, device, positive
from vmamba.cli.printing import print_json
from vmamba.data.images import find_images
from vmamba.model.backbone import VMamba
from vmamba.progress import progress_bar
from vmamba.tables import write_csv
from vmamba.terminal import console
from vmamba.zoo import model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba analyze erf vmamba_tiny_s1l8 resnet50 --count 16
  vmamba analyze erf --checkpoint model.safetensors --images photos"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "erf", help="which pixels the centre of the last feature map depends on", epilog=EXAMPLES
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"ours or timm's (default without --checkpoint: {' '.join(PEERS)})"
    )
    parser.add_argument("--pretrained", action="store_true", help="also each MODEL with its published weights")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="weights of ours, shown beside the same model before training; repeatable",
    )
    parser.add_argument("--images", nargs="+", metavar="IMAGE", help="files, folders, patterns (default: noise)")
    add_max_pixels(parser)
    parser.add_argument("--count", type=positive, default=4, help="images to average over (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and noise")
    add_device(parser)
    add_image_size(parser)
    add_json(parser)
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    images = find_images(options.images)[: options.count] if options.images else None
    table, stem = output_files(options, "erf", ".csv", [*(images or ()), *options.checkpoint])
    target = device(options.device)
    fields: dict[str, ReceptiveField] = {}
    rows: list[dict[str, object]] = []
    cases = _cases(options)
    with progress_bar("images") as bar:
        task = bar.add_task("", total=len(cases) * options.count)
        for (name, state), create in cases.items():
            bar.update(task, description=f"{name} {state}")
            torch.manual_seed(options.seed)
            model = create().to(target).eval()
            batches = (image.to(target) for image in _batches(options, images, model))
            field = receptive_field(model, bar.track(batches, task_id=task))
            fields[f"{name}\n{state}"] = field
            held = {f"pixels holding {level:.0%}": round(field.pixels_holding(level), 6) for level in LEVELS}
            rows.append({"model": name, "weights": state, "images": field.images} | held)
    head = {"image": "{}×{}".format(*options.image_size), "input": "files" if options.images else "Gaussian noise"}
    shown = Table(*rows[0], title=f"fraction of the {head['image']} pixels that hold a fraction of the energy")
    for row in rows:
        shown.add_row(*(f"{value:.2%}" if isinstance(value, float) else str(value) for value in row.values()))
    if options.json:
        print_json(rows)
    else:
        console().print(shown)
    write_csv(table, rows, head)
    maps = {name: field.energy.numpy() for name, field in fields.items()}
    fractions = {name: [field.pixels_holding(level) for level in LEVELS] for name, field in fields.items()}
    report([table, *draw.receptive_fields(maps, fractions, LEVELS, stem)])
    return 0


def _cases(options: argparse.Namespace) -> dict[tuple[str, str], Callable[[], nn.Module]]:
    """Functions that create the models, by (name, state of the weights)."""
    cases: dict[tuple[str, str], Callable[[], nn.Module]] = {}
    for name in options.models or (() if options.checkpoint else PEERS):
        create = functools.partial(load_model, name, image_size=options.image_size)
        cases[name, "random weights"] = create
        if options.pretrained:
            cases[name, "published weights"] = functools.partial(create, pretrained=True)
    for path in options.checkpoint:
        trained = model_from_checkpoint(path)
        cases[path.stem, "before training"] = functools.partial(VMamba, trained.config)
        cases[path.stem, "after training"] = functools.partial(lambda model: model, trained)
    return cases


def _batches(options: argparse.Namespace, images: Sequence[Path] | None, model: nn.Module) -> Iterator[Tensor]:
    """`--count` batches of one image, from files or noise."""
    if images is None:
        channels = int(getattr(model, "in_chans", 3))
        yield from (torch.randn(1, channels, *options.image_size) for _ in range(options.count))
        return
    for path in images:
        yield load_image(path, model, options.image_size, options.max_pixels)[1]
