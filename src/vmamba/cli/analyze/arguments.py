"""Arguments that several analyses take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vmamba.cli.arguments import positive


def size(text: str) -> tuple[int, int]:
    """``224`` or ``224x320`` (height × width) in pixels."""
    height, _, width = text.partition("x")
    return positive(height), positive(width or height)


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("analysis"), metavar="FOLDER", help="default: analysis")


def add_image_size(parser: argparse.ArgumentParser, default: str = "224") -> None:
    parser.add_argument(
        "--image-size", type=size, default=default, metavar="PIXELS", help=f"side, or HxW (default {default})"
    )


def report(paths: Sequence[Path]) -> None:
    """Say what was written."""
    print("wrote " + ", ".join(map(str, paths)))
