"""``vmamba analyze attention``: SS2D read as attention."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from vmamba.analysis import draw
from vmamba.analysis.attention import Kind, attention_rows, block_scans
from vmamba.analysis.images import load_image
from vmamba.cli.analyze.arguments import (
    add_image_size,
    add_model,
    block,
    last_block_of_third_stage,
    model,
    output_files,
    position,
    report,
    token,
)
from vmamba.cli.arguments import add_json, add_max_pixels, add_output
from vmamba.cli.printing import print_json, write_json
from vmamba.progress import progress_bar

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

QUERIES = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))

EXAMPLES = """examples:
  vmamba analyze attention photo.jpg --model vmamba_tiny_s1l8 --pretrained
  vmamba analyze attention photo.jpg --checkpoint model.safetensors --block 2.7 --query 0.5,0.5 --normalised"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "attention", help="which tokens the output of a token is made of, per route", epilog=EXAMPLES
    )
    parser.add_argument("image", type=Path, help="a picture")
    add_max_pixels(parser)
    add_model(parser)
    parser.add_argument(
        "--block",
        type=block,
        metavar="STAGE.BLOCK",
        help="both from 0 (default: the last block of the third stage)",
    )
    parser.add_argument(
        "--query",
        type=position,
        action="append",
        metavar="Y,X",
        help="token to ask about, as fractions of height and width; repeatable (default 0.25,0.25 0.5,0.5 0.75,0.75)",
    )
    parser.add_argument("--kind", choices=get_args(Kind), default="exact", help="default exact; see the page in docs")
    parser.add_argument("--signed", action="store_true", help="average the values over channels, not the magnitudes")
    parser.add_argument("--normalised", action="store_true", help="let the row of every route sum to one")
    add_image_size(parser)
    add_json(parser, "an object: what FOLDER/attention.json holds")
    add_output(parser, "analysis")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    table, stem = output_files(options, "attention", ".json", [options.image, options.checkpoint])
    net = model(options)
    pixels, image = load_image(options.image, net, options.image_size, options.max_pixels)
    name = options.block or last_block_of_third_stage(net)
    scans = block_scans(net, name, image.to(next(net.parameters()).device))
    queries = [token(q, scans[0].grid) for q in options.query or QUERIES]
    rows = []
    with progress_bar("queries") as bar:
        for query in bar.track(queries, description="reading rows"):
            maps = attention_rows(
                scans, query, options.kind, magnitude=not options.signed, normalised=options.normalised
            )
            rows.append(maps.cpu())
    routes = [scan.name for scan in scans]
    per_query = [
        {"query": query, "routes": [{"route": r, "row": m.tolist()} for r, m in zip(routes, maps, strict=True)]}
        for query, maps in zip(queries, rows, strict=True)
    ]
    settings = {"image": str(options.image), "block": name, "grid": scans[0].grid, "kind": options.kind}
    settings |= {"values": "signed" if options.signed else "magnitudes", "normalised": options.normalised}
    record = settings | {"queries": per_query}
    write_json(table, record)
    if options.json:
        print_json(record)
    title = f"{name}: {options.kind.replace('_', ' ')}" + (", normalised" if options.normalised else "")
    pictures = draw.attention(pixels, queries, torch.stack(rows).numpy(), routes, stem, title, signed=options.signed)
    report([table, *pictures])
    return 0
