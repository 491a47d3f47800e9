"""The precision of frozen models: ``--precision``."""

from __future__ import annotations

import argparse

import torch

from vmamba.cli.arguments import device
from vmamba.errors import OptionError
from vmamba.ops import PRECISIONS


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of matrix products on a CPU: float32 (default), or bfloat16 or int8, faster and less exact",
    )


def inference_device(options: argparse.Namespace) -> torch.device:
    """The device of the options, where models can be frozen in the precision of the options.

    Raises:
        OptionError: If there is no such device, or the precision is for another one.
    """
    target = device(options.device)
    if options.precision != "float32" and target.type != "cpu":
        raise OptionError(f"--precision {options.precision} is for the CPU, not for {target}; add --device cpu")
    return target
