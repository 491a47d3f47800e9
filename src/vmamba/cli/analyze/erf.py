"""``vmamba analyze erf``: effective receptive fields, before and after training."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vmamba.analysis import draw
from vmamba.analysis.erf import SHARES, ReceptiveField, receptive_field
from vmamba.analysis.images import load_image
from vmamba.analysis.models import load_model
from vmamba.analysis.tables import write_csv
from vmamba.cli.analyze.arguments import PEERS, add_image_size, add_output, report
from vmamba.cli.arguments import device, positive
from vmamba.data.images import find_images
from vmamba.model.backbone import VMamba
from vmamba.progress import progress_bar
from vmamba.zoo import model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("erf", help="which pixels the centre of the last feature map depends on")
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
    parser.add_argument("--count", type=positive, default=4, help="images to average over (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and noise")
    parser.add_argument("--device", help="cpu, cuda, mps … (default: the fastest there is)")
    add_image_size(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    target = device(options.device)
    found: dict[str, ReceptiveField] = {}
    rows: list[dict[str, object]] = []
    cases = _cases(options)
    with progress_bar("images") as bar:
        task = bar.add_task("", total=len(cases) * options.count)
        for (name, state), create in cases.items():
            bar.update(task, description=f"{name} {state}")
            torch.manual_seed(options.seed)
            model = create().to(target).eval()
            images = (image.to(target) for image in _images(options, model))
            field = receptive_field(model, bar.track(images, task_id=task))
            found[f"{name}\n{state}"] = field
            held = {f"pixels holding {share:.0%}": round(field.pixels_holding(share), 6) for share in SHARES}
            rows.append({"model": name, "weights": state, "images": field.images} | held)
    head = {"image": "{}×{}".format(*options.image_size), "input": "files" if options.images else "Gaussian noise"}
    table = Table(*rows[0], title=f"share of the {head['image']} pixels that hold a share of the energy")
    for row in rows:
        table.add_row(*(f"{value:.2%}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    paths = [write_csv(options.output / "erf.csv", rows, head)]
    maps = {name: field.energy.numpy() for name, field in found.items()}
    shares = {name: [field.pixels_holding(share) for share in SHARES] for name, field in found.items()}
    report(paths + draw.receptive_fields(maps, shares, SHARES, options.output / "erf"))
    return 0


def _cases(options: argparse.Namespace) -> dict[tuple[str, str], Callable[[], nn.Module]]:
    """What creates each model, by (name, state of the weights)."""
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


def _images(options: argparse.Namespace, model: nn.Module) -> Iterator[Tensor]:
    """`--count` images of one, from files or noise."""
    if options.images is None:
        channels = int(getattr(model, "in_chans", 3))
        yield from (torch.randn(1, channels, *options.image_size) for _ in range(options.count))
        return
    for path in find_images(options.images)[: options.count]:
        yield load_image(path, model, options.image_size)[1]
