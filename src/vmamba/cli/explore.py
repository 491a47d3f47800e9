"""``vmamba explore``: a page that shows what the scans of a model look at."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from vmamba import demo
from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.cli.arguments import positive
from vmamba.data.images import find_images
from vmamba.explorer import Exhibit, write_site
from vmamba.explorer.runtime import write_runtime
from vmamba.progress import remark
from vmamba.zoo import model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

IMAGES = 24
DIGITS = "A vmamba_pico that learnt handwritten digits in two minutes; the pictures are those it is not sure of."
SHAPES = "A vmamba_pico that learnt to tell shapes apart, whatever their colours."

EXAMPLES = """examples:
  vmamba explore --output site
  vmamba explore --checkpoint runs/photos/weights/model.safetensors --images photos --output site
  python -m http.server --directory site"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "explore", help="write a page that shows what the scans of a model look at", epilog=EXAMPLES
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder of the page")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="weights of classifiers, the authors' or ours (default: small models of digits and shapes, trained once)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help=f"pictures for the page: files, folders or patterns, of which up to {IMAGES} are taken",
    )
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="of the models' input (default: the weights' own, or 224)"
    )
    parser.add_argument(
        "--demo", type=Path, default=Path("demo"), metavar="FOLDER", help="where those small models are (default demo)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    images = find_images(options.images)[:IMAGES] if options.images else []
    write_runtime(options.output / "onnxruntime")  # first: it may be that it cannot be had
    if options.checkpoint:
        exhibits = [_exhibit(path, images, options.image_size) for path in options.checkpoint]
    else:
        exhibits = _demo(options.demo, images)
    write_site(options.output, exhibits)
    remark(f"wrote {options.output}; to look: python -m http.server --directory {shlex.quote(str(options.output))}")
    return 0


def _demo(folder: Path, images: list[Path]) -> list[Exhibit]:
    """The small models of the demo, trained where they are not there yet."""
    digits, shapes = demo.run(folder), demo.run_shapes(folder)
    return [
        Exhibit("Handwritten digits", _model(digits.weights), images or find_images([digits.images]), note=DIGITS),
        Exhibit("Shapes", _model(shapes.weights), images or shapes.images, note=SHAPES),
    ]


def _exhibit(path: Path, images: list[Path], image_size: int | None) -> Exhibit:
    title = path.stem if path.stem != "model" else path.absolute().parent.parent.name  # RUN/weights/model.safetensors
    return Exhibit(title, _model(path), images, image_size)


def _model(path: Path) -> nn.Module:
    checkpoint = open_checkpoint(path)
    checkpoint.expect("classification")
    return model_from_checkpoint(checkpoint, in_chans=3).eval()
