"""Arguments that several commands take, and their values."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vmamba.errors import OptionError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:  # true for NaN, too
        raise ValueError
    return value


def device(name: str | None) -> torch.device:
    """The device of that name, or the fastest there is.

    Raises:
        OptionError: If there is no such device here.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return chosen


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command takes."""
    parser.add_argument(
        "--quiet", action="store_true", help="print only errors, and results that are not written to a file"
    )
    parser.add_argument("--debug", action="store_true", help="show where an error happened")


def add_max_pixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="read images of up to N pixels (default: Pillow's limit, about 179 million)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, mps … (default: the fastest there is)")


def add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument("--output", type=Path, default=Path(folder), metavar="FOLDER", help=f"default: {folder}")


def add_json(parser: argparse.ArgumentParser, form: str = "an array") -> None:
    parser.add_argument("--json", action="store_true", help=f"print the results as JSON, {form}")
