"""``vmamba analyze activation``: maps of a layer for a position, and of a class."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from vmamba.analysis import draw
from vmamba.analysis.activation import class_activation, dependence_map, last_stage, similarity_map
from vmamba.analysis.images import load_image
from vmamba.checkpoints.info import ModelInfo
from vmamba.cli.analyze.arguments import add_image_size, add_model, model, output_files, position, report, token
from vmamba.cli.arguments import add_json, add_max_pixels, add_output
from vmamba.cli.printing import print_json, write_json
from vmamba.progress import progress_bar
from vmamba.tasks.classification.prediction import class_names
from vmamba.terminal import printable

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

POSITIONS = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))

EXAMPLES = """examples:
  vmamba analyze activation photo.jpg --checkpoint model.safetensors
  vmamba analyze activation photo.jpg --model resnet50 --pretrained --layer layer3 --class 207"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "activation", help="what a layer computes for a position, and where a class is seen", epilog=EXAMPLES
    )
    parser.add_argument("image", type=Path, help="a picture")
    add_max_pixels(parser)
    add_model(parser)
    parser.add_argument(
        "--layer", metavar="NAME", help="stage or block, as stages.2 or stages.2.blocks.7 (default: the last stage)"
    )
    parser.add_argument(
        "--position",
        type=position,
        action="append",
        metavar="Y,X",
        help="fractions of height and width; repeatable (default 0.25,0.25 0.5,0.5 0.75,0.75)",
    )
    parser.add_argument("--class", dest="target", type=int, metavar="N", help="default: the most probable")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names, one per line (default: the checkpoint's, ImageNet's)"
    )
    add_image_size(parser)
    add_json(parser, "an object: what FOLDER/activation.json holds")
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    table, stem = output_files(options, "activation", ".json", [options.image, options.checkpoint, options.labels])
    net = model(options)
    pixels, image = load_image(options.image, net, options.image_size, options.max_pixels)
    image = image.to(next(net.parameters()).device)
    layer = options.layer or last_stage(net)
    grid = tuple(similarity_map(net, layer, image, (0, 0)).shape)
    tokens = [token(p, (grid[0], grid[1])) for p in options.position or POSITIONS]
    similarity, dependence = [], []
    with progress_bar("positions") as bar:
        for at in bar.track(tokens, description="maps"):
            similarity.append(similarity_map(net, layer, image, at).detach().cpu())
            dependence.append(dependence_map(net, layer, image, at).cpu())
    seen, label = class_activation(net, image, options.layer, options.target)
    known = cast(ModelInfo, getattr(net, "info", None) or ModelInfo()).class_names
    name = class_names(cast(int, net.num_classes), options.labels, known)[label]
    maps = [
        {"position": at, "similarity": s.tolist(), "dependence": d.tolist()}
        for at, s, d in zip(tokens, similarity, dependence, strict=True)
    ]
    record = {"image": str(options.image), "layer": layer, "grid": grid, "positions": maps}
    record |= {"class": label, "name": name, "class_activation": seen.tolist()}
    write_json(table, record)
    if options.json:
        print_json(record)
    similarities, dependences = torch.stack(similarity).numpy(), torch.stack(dependence).numpy()
    pictures = draw.activation(pixels, tokens, similarities, dependences, seen.numpy(), stem, layer, printable(name))
    report([table, *pictures])
    return 0
