"""``vmamba export``: a model as a file that runs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vmamba.checkpoints.info import info_of
from vmamba.cli.any_task import add_model, model_of
from vmamba.cli.arguments import positive
from vmamba.cli.printing import print_json
from vmamba.data.images import find_images, read_image
from vmamba.export import FORMATS, PRECISIONS, export
from vmamba.files import refuse_overwriting
from vmamba.progress import progress_bar, remark
from vmamba.tasks.classification.prediction import eval_transform
from vmamba.tasks.segmentation.inference import Inference, as_tensor

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

CALIBRATION_IMAGES = 256

EXAMPLES = """examples:
  vmamba export --checkpoint runs/finetune/weights/model.safetensors --output model.onnx
  vmamba export --model vmamba_tiny_s1l8 --pretrained --precision float16 --output tiny.onnx
  vmamba export --checkpoint model.safetensors --precision int8 --images photos --output int8.onnx"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write a model as a file for other runtimes", epilog=EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="default onnx; openvino is an .xml with a .bin beside it, torch a .pt2",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="size of the example (default: the weights' own, or 224)"
    )
    parser.add_argument(
        "--dynamic", metavar="WHAT", help="what may differ from the example: batch,size (default: what can)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="default float32")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="for int8: files, folders or patterns, of which up to 256 calibrate",
    )
    parser.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="of a classifier: the file resizes, crops and normalises its images itself; they are uint8 (B, H, W, 3)",
    )
    parser.add_argument("--inline", action="store_true", help="standard operators alone, no functions")
    parser.add_argument("--json", action="store_true", help="print what was written as a JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.checkpoint:
        refuse_overwriting([options.output], [options.checkpoint])
    model = model_of(options)
    info = getattr(model, "info", None)
    preprocessing = getattr(info, "preprocessing", None)
    calibration = _calibration(model, options)
    exported = export(
        model,
        options.output,
        format=options.format,
        image_size=options.image_size or getattr(preprocessing, "image_size", None) or 224,
        dynamic=None if options.dynamic is None else [name for name in options.dynamic.split(",") if name],
        precision=options.precision,
        inline=options.inline,
        with_preprocessing=options.with_preprocessing,
        calibration=calibration,
    )
    if options.json:
        print_json(
            {"file": str(exported.path), "nodes": exported.nodes, "error": exported.error, "shapes": exported.shapes}
        )
        return 0
    remark(
        f"wrote {exported.path}: {exported.nodes} nodes, "
        f"within {exported.error:.1e} of PyTorch "
        + (f"on {len(calibration)} images" if calibration else f"at {len(exported.shapes)} shapes")
    )
    return 0


def _calibration(model: nn.Module, options: argparse.Namespace) -> list[Tensor]:
    """Images as the model takes them, in batches of one: those of segmenters differ in size."""
    if not options.images:
        return []
    info = info_of(model)
    paths = find_images(options.images)[:CALIBRATION_IMAGES]
    with progress_bar("images") as bar:
        images = [read_image(path) for path in bar.track(paths, description="reading")]
    if info.task == "segmentation":
        inference = Inference() if info.preprocessing is None else Inference.of(info.preprocessing)
        return [next(inference.inputs(as_tensor(image))) for image in images]
    transform = eval_transform(model, options.image_size)
    return [transform(image)[None] for image in images]
