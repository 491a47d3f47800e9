"""``vmamba segment``: the class of every pixel."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from vmamba.cli.arguments import device, outputs, positive
from vmamba.data.images import find_images, read_image
from vmamba.errors import ImageError
from vmamba.progress import progress_bar
from vmamba.tasks.dense.checkpoint import load_segmenter
from vmamba.tasks.dense.pictures import draw_segmentation
from vmamba.tasks.segmentation.inference import SCALES, Inference, as_tensor, segment

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("segment", help="find the class of every pixel")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or quoted glob patterns")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a segmenter, authors' or ours")
    parser.add_argument(
        "--model", metavar="NAME", help="its backbone (default: what the checkpoint says or looks like)"
    )
    parser.add_argument("--output", type=Path, default=Path("segments"), metavar="FOLDER", help="default: segments")
    parser.add_argument("--image-size", type=positive, default=512, metavar="PIXELS", help="short side (default 512)")
    parser.add_argument("--full-size", action="store_true", help="take images at their own size")
    parser.add_argument("--window", type=positive, metavar="PIXELS", help="slide windows of this side over the image")
    parser.add_argument("--stride", type=positive, metavar="PIXELS", help="from window to window (default two thirds)")
    parser.add_argument("--multi-scale", action="store_true", help="average six scales of each image, and its mirror")
    parser.add_argument("--device", help="cpu, cuda, mps … (default: the fastest there is)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    paths = find_images(options.images)
    target = device(options.device)
    inference = Inference(
        None if options.full_size or options.multi_scale else options.image_size,
        max_size=max(2048, 4 * options.image_size),
        window=options.window,
        stride=options.stride,
        scales=SCALES if options.multi_scale else (1.0,),
        flip=options.multi_scale,
    )
    model = load_segmenter(options.checkpoint, options.model).to(target).eval()
    classes = model.config.classes
    names = outputs(paths)
    failures: list[ImageError] = []
    records: list[dict[str, Any]] = []
    table = Table(Column("image", overflow="fold"), "class", "share")
    with progress_bar("windows") as bar:
        task = bar.add_task("segmenting", total=None)
        for number, path in enumerate(paths):
            try:
                image = read_image(path)
            except ImageError as error:
                failures.append(error)
                continue
            steps = inference.windows((image.height, image.width))
            bar.reset(task, total=steps, description=f"image {number + 1} of {len(paths)}")
            labels = segment(model, as_tensor(image).to(target), inference, on_window=lambda: bar.advance(task))
            options.output.mkdir(parents=True, exist_ok=True)
            label_map = options.output / f"{names[path]}_labels.png"
            Image.fromarray(labels.numpy()).save(label_map)
            draw_segmentation(options.output / f"{names[path]}.png", image, labels, classes)
            record = {"image": str(path), "labels": str(label_map), "shares": _shares(labels, classes)}
            records.append(record)
            _add_rows(table, record)
    if records:
        (options.output / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
        (options.output / "segments.json").write_text(json.dumps(records, indent=1, ensure_ascii=False))
    if options.json:
        print(json.dumps(records, indent=2, ensure_ascii=False))
    elif records:
        Console().print(table)
        print(f"wrote pictures, label maps (pixel value = line of classes.txt, from 0) and JSON to {options.output}")
    for failure in failures:
        print(f"vmamba: skipped: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _shares(labels: torch.Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    """Share of the image of each class in it, largest first."""
    found, counts = labels.unique(return_counts=True)
    shares = {classes[i]: n / labels.numel() for i, n in zip(found.tolist(), counts.tolist(), strict=True)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _add_rows(table: Table, record: dict[str, Any]) -> None:
    for i, (name, share) in enumerate(list(record["shares"].items())[:5]):
        last = i == min(len(record["shares"]), 5) - 1
        table.add_row("" if i else record["image"], name, f"{share:.1%}", end_section=last)
