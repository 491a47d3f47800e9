"""``vmamba shapes``: data to try detection and segmentation with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.cli.arguments import positive
from vmamba.data.shapes import write_shapes
from vmamba.errors import OptionError
from vmamba.progress import remark

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba shapes shapes --train 200 --val 50
  vmamba train --recipe shapes/detection --data shapes/coco"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "shapes", help="write pictures of shapes, to try detection and segmentation with", epilog=EXAMPLES
    )
    parser.add_argument("folder", type=Path, help="gets coco/ and ade20k/, in these data sets' formats")
    parser.add_argument("--train", type=positive, default=1200, metavar="N", help="training pictures (default 1200)")
    parser.add_argument("--val", type=positive, default=100, metavar="N", help="validation pictures (default 100)")
    parser.add_argument("--image-size", type=positive, default=128, metavar="PIXELS", help="typical size (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="write into folders that exist")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    for folder in (options.folder / "coco", options.folder / "ade20k"):
        if folder.exists() and not options.force:  # perhaps somebody's data
            raise OptionError(f"{folder} exists; name another folder, or write into it with --force")
    folders = write_shapes(
        options.folder, train=options.train, val=options.val, image_size=options.image_size, seed=options.seed
    )
    remark(f"wrote {' and '.join(map(str, folders))}")
    return 0
