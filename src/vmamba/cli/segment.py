"""``vmamba segment``: the class of every pixel."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from vmamba.checkpoints.info import info_of
from vmamba.cli.arguments import add_device, positive
from vmamba.cli.exported import add_engine, exported_model
from vmamba.cli.precision import add_precision, inference_device
from vmamba.cli.results import Listing, add_work, results_of
from vmamba.data.decoding import DecodedImages
from vmamba.data.sources import ImageRef
from vmamba.files import atomic_write
from vmamba.frozen import freeze
from vmamba.results.names import OutputNames
from vmamba.tasks.dense.pictures import class_fractions, draw_segmentation
from vmamba.tasks.protocol import RGB
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.tasks.segmentation.inference import SCALES, Inference, as_tensor, segment
from vmamba.tasks.segmentation.upernet import UperNet
from vmamba.terminal import printable

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

RESULTS, CLASSES = "segments.jsonl", "classes.txt"
#: Classes listed for an image.
LISTED = 5

EXAMPLES = """examples:
  vmamba segment photos --checkpoint runs/segmentation/weights/model.safetensors
  vmamba segment scan.tif --checkpoint model.safetensors --full-size --window 512 --max-pixels 1000000000"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("segment", help="find the class of every pixel", epilog=EXAMPLES)
    add_work(parser, "segments")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a segmenter, authors' or ours")
    parser.add_argument("--model", metavar="NAME", help="its backbone (default: the checkpoint's)")
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="short side (default: the checkpoint's, or 512)"
    )
    parser.add_argument("--full-size", action="store_true", help="take images at their own size")
    parser.add_argument("--window", type=positive, metavar="PIXELS", help="slide square windows over the image")
    parser.add_argument("--stride", type=positive, metavar="PIXELS", help="from window to window (default two thirds)")
    parser.add_argument("--multi-scale", action="store_true", help="average six scales of each image, and its mirror")
    add_engine(parser)
    add_device(parser)
    add_precision(parser)
    parser.set_defaults(run=run)


#: Columns of a row.
COLUMNS = {
    "image": "string",
    "fractions": [{"category": "string", "fraction": "float32"}],
    "picture": "string",
    "labels": "string",
    "labels_png": "string",
    "error": "string",
}


def run(options: argparse.Namespace) -> int:
    listing = Listing(options)
    model: Any = exported_model(options, "segmentation")
    target = torch.device("cpu") if model else inference_device(options)
    model = model or freeze(_segmenter(options).to(target), options.precision)
    classes, inference = info_of(model).class_names, _inference(model, options)
    with results_of(
        options, listing, COLUMNS, rows=RESULTS, endings=(".png", "_labels.png"), others=(CLASSES,)
    ) as results:
        if results.names is not None:
            with atomic_write(options.output / CLASSES) as file:
                file.write("".join(f"{printable(name)}\n" for name in classes).encode())
        task = results.bar.add_task("windows", total=None, unit="windows", visible=False)
        images = DecodedImages(results.images, workers=listing.workers, max_pixels=options.max_pixels)
        for ref, image in images.decoded(results.fail):
            with results.of(ref):
                windows = inference.windows((image.height, image.width))
                results.bar.reset(task, total=windows, visible=windows > 1)
                labels = segment(
                    model, as_tensor(image).to(target), inference, on_window=lambda: results.bar.advance(task)
                )
                results.add(*_row(ref, image, labels, classes, results.names))
    return results.finish(images.waited)


def _segmenter(options: argparse.Namespace) -> UperNet:
    return load_segmenter(options.checkpoint, options.model, backbone_options=RGB)


def _row(
    ref: ImageRef, image: Image.Image, labels: torch.Tensor, classes: tuple[str, ...], names: OutputNames | None
) -> tuple[dict[str, Any], list[str]]:
    """A row, and lines for people; the label map lies beside the picture, or in the row where there are rows only."""
    fractions = [{"category": classes[index], "fraction": value} for index, value in class_fractions(labels)]
    lines = [f"{entry['fraction']:7.1%}  {entry['category']}" for entry in fractions[:LISTED]]
    if names is None:
        content = io.BytesIO()
        Image.fromarray(labels.numpy()).save(content, format="PNG")
        encoded = base64.b64encode(content.getvalue()).decode()
        return {"image": ref.name, "fractions": fractions, "labels_png": encoded}, [ref.name, *lines]
    picture, label_map = names.claim(ref.below)
    with atomic_write(label_map) as file:
        Image.fromarray(labels.numpy()).save(file, format="PNG")
    draw_segmentation(picture, image, labels, classes)
    row = {"image": ref.name, "fractions": fractions, "picture": str(picture), "labels": str(label_map)}
    return row, [f"{ref.name} → {picture}", *lines]


def _inference(model: nn.Module, options: argparse.Namespace) -> Inference:
    """The checkpoint's way to segment, or that of the published results, with the options' sizes."""
    settings = info_of(model).preprocessing
    inference = Inference() if settings is None else Inference.of(settings)
    image_size = options.image_size or inference.image_size
    return dataclasses.replace(
        inference,
        image_size=None if options.full_size or options.multi_scale else image_size,
        max_size=max(inference.max_size, 4 * (options.image_size or 0)),
        window=options.window,
        stride=options.stride,
        scales=SCALES if options.multi_scale else (1.0,),
        flip=options.multi_scale,
    )
