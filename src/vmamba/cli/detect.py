"""``vmamba detect``: boxes and masks."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor, nn

from vmamba.checkpoints.info import MAX_PIXELS, Preprocessing, info_of
from vmamba.cli.arguments import add_device, fraction, positive
from vmamba.cli.exported import add_engine, exported_model
from vmamba.cli.precision import add_precision, inference_device
from vmamba.cli.results import Listing, add_work, results_of
from vmamba.data.decoding import DecodedImages
from vmamba.data.masks import encode_mask
from vmamba.data.sources import ImageRef
from vmamba.frozen import freeze
from vmamba.results.names import OutputNames
from vmamba.tasks.dense.pictures import draw_detections
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.detections import Detections
from vmamba.tasks.detection.exported import ExportedDetector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN
from vmamba.tasks.detection.prediction import MIN_SIZE, PUBLISHED, check_sizes, detect
from vmamba.tasks.protocol import RGB

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

RESULTS = "detections.jsonl"

EXAMPLES = """examples:
  vmamba detect photos --checkpoint runs/detection/weights/model.safetensors
  vmamba detect photo.jpg --checkpoint mask_rcnn_vssm_fpn_coco_tiny.pth --score 0.3 --json"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("detect", help="detect objects in images: boxes and masks", epilog=EXAMPLES)
    add_work(parser, "detections")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="a detector, the authors' or ours"
    )
    parser.add_argument("--model", metavar="NAME", help="its backbone (default: the checkpoint's)")
    parser.add_argument("--score", type=fraction, default=0.5, metavar="S", help="lowest score shown (default 0.5)")
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="short side (default: the checkpoint's, or 800)"
    )
    parser.add_argument(
        "--max-size",
        type=positive,
        metavar="PIXELS",
        help="limit of the long side (default: the checkpoint's, or 1333)",
    )
    add_engine(parser)
    add_device(parser)
    add_precision(parser)
    parser.set_defaults(run=run)


#: Columns of a row.
COLUMNS = {
    "image": "string",
    "width": "int32",
    "height": "int32",
    "detections": [
        {
            "category": "string",
            "category_index": "int32",
            "bbox": ["float32"],
            "score": "float32",
            "segmentation": {"size": ["int32"], "counts": "string"},
        }
    ],
    "picture": "string",
    "error": "string",
}


def run(options: argparse.Namespace) -> int:
    listing = Listing(options)
    exported = exported_model(options, "detection")
    model = ExportedDetector(exported) if exported else _frozen(options)
    classes, settings = info_of(model).class_names, _settings(model, options)
    check_sizes(settings.image_size or settings.max_size or MIN_SIZE, settings.max_size or MAX_PIXELS)
    with results_of(options, listing, COLUMNS, rows=RESULTS, endings=(".png",)) as results:
        images = DecodedImages(results.images, workers=listing.workers, max_pixels=options.max_pixels)
        for ref, image in images.decoded(results.fail):
            with results.of(ref):
                detections = detect(model, image, settings, score_threshold=options.score)
                results.add(*_row(ref, image, detections, classes, results.names))
    return results.finish(images.waited)


def _row(
    ref: ImageRef, image: Image.Image, detections: Detections, classes: tuple[str, ...], names: OutputNames | None
) -> tuple[dict[str, Any], list[str]]:
    """A row, and lines for people; the picture is drawn where there is a folder for it."""
    masks = functools.partial(detections.image_masks, (image.height, image.width))
    records = _records(detections, masks(), classes)
    row = {"image": ref.name, "width": image.width, "height": image.height, "detections": records}
    head = ref.name
    if names is not None:
        (picture,) = names.claim(ref.below)
        draw_detections(picture, image, detections, masks(), classes)
        row["picture"] = str(picture)
        head = f"{ref.name} → {picture}"
    return row, [head, *map(_line, records)]


def _frozen(options: argparse.Namespace) -> MaskRCNN:
    target = inference_device(options)
    model = load_detector(options.checkpoint, options.model, backbone_options=RGB)
    return freeze(model.to(target), options.precision)


def _settings(model: nn.Module, options: argparse.Namespace) -> Preprocessing:
    """The checkpoint's preprocessing, or that of the published results, with the options' sizes."""
    settings = info_of(model).preprocessing or PUBLISHED
    image_size = options.image_size or settings.image_size
    max_size = options.max_size or settings.max_size
    if image_size and max_size and not options.max_size:
        max_size = max(image_size, max_size)
    return dataclasses.replace(settings, image_size=image_size, max_size=max_size)


def _records(detections: Detections, masks: Iterator[Tensor], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """COCO's results, with class names in place of ids."""
    numbers = (detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist())
    objects = zip(*numbers, masks, strict=True)
    return [
        {
            "category": classes[label],
            "category_index": label,
            "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
            "segmentation": encode_mask(mask),
        }
        for (x1, y1, x2, y2), score, label, mask in objects
    ]


def _line(record: dict[str, Any]) -> str:
    x, y, width, height = record["bbox"]
    return f"{record['score']:7.0%}  {record['category']}  {width:.0f}×{height:.0f} at {x:.0f},{y:.0f}"
