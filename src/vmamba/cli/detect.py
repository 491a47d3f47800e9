"""``vmamba detect``: boxes and masks."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vmamba.checkpoints.info import MAX_PIXELS, Preprocessing, info_of
from vmamba.cli.arguments import add_device, add_images, add_json, add_output, device, fraction, positive
from vmamba.cli.exported import add_engine, exported_model
from vmamba.cli.results import Failures, array_file, output_paths, printer, results_folder
from vmamba.data.images import find_images, read_image
from vmamba.data.masks import encode_mask
from vmamba.frozen import freeze
from vmamba.progress import progress_bar, remark
from vmamba.tasks.dense.pictures import draw_detections
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.detections import Detections
from vmamba.tasks.detection.exported import ExportedDetector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN
from vmamba.tasks.detection.prediction import MIN_SIZE, PUBLISHED, check_sizes, detect
from vmamba.tasks.protocol import RGB

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

RESULTS = "detections.json"

EXAMPLES = """examples:
  vmamba detect photos --checkpoint runs/detection/weights/model.safetensors
  vmamba detect photo.jpg --checkpoint mask_rcnn_vssm_fpn_coco_tiny.pth --score 0.3 --json"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("detect", help="detect objects in images: boxes and masks", epilog=EXAMPLES)
    add_images(parser)
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
    add_output(parser, "detections")
    add_engine(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    images = find_images(options.images)
    outputs = output_paths(images, options.output, (".png",), (RESULTS,), options.checkpoint)
    exported = exported_model(options, "detection")
    model = ExportedDetector(exported) if exported else freeze(_detector(options))
    classes, settings = info_of(model).class_names, _settings(model, options)
    check_sizes(settings.image_size or settings.max_size or MIN_SIZE, settings.max_size or MAX_PIXELS)
    failures = Failures()
    with ExitStack() as stack:
        stack.enter_context(results_folder(options.output))
        save = stack.enter_context(array_file(options.output / RESULTS))
        show = stack.enter_context(printer(options.json, written=True))
        bar = stack.enter_context(progress_bar("images"))
        for path in bar.track(images, description="detecting"):
            with failures.of(path):
                image = read_image(path, max_pixels=options.max_pixels)
                detections = detect(model, image, settings, score_threshold=options.score)
                masks = functools.partial(detections.image_masks, (image.height, image.width))
                records = _records(path, detections, masks(), classes)
                (picture,) = outputs[path]
                draw_detections(picture, image, detections, masks(), classes)
                for record in records:
                    save(record)
                show(records, [f"{path} → {picture}", *map(_line, records)])
    if not options.json:
        remark(f"wrote pictures and {RESULTS} (COCO's results format) to {options.output}")
    return failures.finish()


def _detector(options: argparse.Namespace) -> MaskRCNN:
    return load_detector(options.checkpoint, options.model, backbone_options=RGB).to(device(options.device))


def _settings(model: nn.Module, options: argparse.Namespace) -> Preprocessing:
    """The checkpoint's preprocessing, or that of the published results, with the options' sizes."""
    settings = info_of(model).preprocessing or PUBLISHED
    image_size = options.image_size or settings.image_size
    max_size = options.max_size or settings.max_size
    if image_size and max_size and not options.max_size:
        max_size = max(image_size, max_size)
    return dataclasses.replace(settings, image_size=image_size, max_size=max_size)


def _records(
    path: Path, detections: Detections, masks: Iterator[Tensor], classes: tuple[str, ...]
) -> list[dict[str, Any]]:
    """COCO's results, with file and class names in place of ids."""
    numbers = (detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist())
    objects = zip(*numbers, masks, strict=True)
    return [
        {
            "image": str(path),
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
