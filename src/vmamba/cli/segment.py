"""``vmamba segment``: the class of every pixel."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from vmamba.checkpoints.info import info_of
from vmamba.cli.arguments import add_device, add_images, add_json, add_output, device, positive
from vmamba.cli.exported import add_engine, exported_model
from vmamba.cli.results import Failures, array_file, output_paths, printer, results_folder
from vmamba.data.images import find_images, read_image
from vmamba.files import atomic_write
from vmamba.frozen import freeze
from vmamba.progress import progress_bar, remark
from vmamba.tasks.dense.pictures import class_fractions, draw_segmentation
from vmamba.tasks.protocol import RGB
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.tasks.segmentation.inference import SCALES, Inference, as_tensor, segment
from vmamba.terminal import printable

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

RESULTS, CLASSES = "segments.json", "classes.txt"
#: Classes listed for an image.
LISTED = 5

EXAMPLES = """examples:
  vmamba segment photos --checkpoint runs/segmentation/weights/model.safetensors
  vmamba segment scan.tif --checkpoint model.safetensors --full-size --window 512 --max-pixels 1000000000"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("segment", help="find the class of every pixel", epilog=EXAMPLES)
    add_images(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a segmenter, authors' or ours")
    parser.add_argument("--model", metavar="NAME", help="its backbone (default: the checkpoint's)")
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="short side (default: the checkpoint's, or 512)"
    )
    parser.add_argument("--full-size", action="store_true", help="take images at their own size")
    parser.add_argument("--window", type=positive, metavar="PIXELS", help="slide square windows over the image")
    parser.add_argument("--stride", type=positive, metavar="PIXELS", help="from window to window (default two thirds)")
    parser.add_argument("--multi-scale", action="store_true", help="average six scales of each image, and its mirror")
    add_output(parser, "segments")
    add_engine(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    images = find_images(options.images)
    outputs = output_paths(images, options.output, (".png", "_labels.png"), (RESULTS, CLASSES), options.checkpoint)
    model: Any = exported_model(options, "segmentation")
    target = torch.device("cpu") if model else device(options.device)
    model = model or freeze(load_segmenter(options.checkpoint, options.model, backbone_options=RGB).to(target))
    classes, inference = info_of(model).class_names, _inference(model, options)
    failures = Failures()
    with ExitStack() as stack:
        stack.enter_context(results_folder(options.output))
        with atomic_write(options.output / CLASSES) as file:
            file.write("".join(f"{printable(name)}\n" for name in classes).encode())
        save = stack.enter_context(array_file(options.output / RESULTS))
        show = stack.enter_context(printer(options.json, written=True))
        bar = stack.enter_context(progress_bar("windows"))
        task = bar.add_task("segmenting", total=None)
        for number, path in enumerate(images, start=1):
            with failures.of(path):
                image = read_image(path, max_pixels=options.max_pixels)
                windows = inference.windows((image.height, image.width))
                bar.reset(task, total=windows, description=f"image {number} of {len(images)}")
                labels = segment(model, as_tensor(image).to(target), inference, on_window=lambda: bar.advance(task))
                picture, label_map = outputs[path]
                with atomic_write(label_map) as file:
                    Image.fromarray(labels.numpy()).save(file, format="PNG")
                draw_segmentation(picture, image, labels, classes)
                record = _record(path, label_map, labels, classes)
                save(record)
                show([record], [f"{path} → {picture}", *_lines(record)])
    if not options.json:
        remark(
            f"wrote pictures, label maps (the value is the line of {CLASSES}, from 0) and {RESULTS} to {options.output}"
        )
    return failures.finish()


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


def _record(path: Path, label_map: Path, labels: torch.Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """The image, its label map, and the fraction of each class of its area, largest first."""
    fractions = {classes[index]: fraction for index, fraction in class_fractions(labels)}
    return {"image": str(path), "labels": str(label_map), "shares": fractions}


def _lines(record: dict[str, Any]) -> list[str]:
    return [f"{fraction:7.1%}  {name}" for name, fraction in list(record["shares"].items())[:LISTED]]
