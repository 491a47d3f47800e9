"""Models of any task, as commands name them: ``--checkpoint``, ``--pretrained``, ``--model``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from torch import nn

from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.errors import OptionError
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.zoo import create_model, model_from_checkpoint

LOADERS: dict[str, Callable[..., nn.Module]] = {"detection": load_detector, "segmentation": load_segmenter}


def add_model(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, the authors' or ours")
    source.add_argument("--pretrained", action="store_true", help="the authors' weights for --model, downloaded once")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")


def model_of(options: argparse.Namespace) -> nn.Module:
    """The model that the options name.

    Raises:
        OptionError: For published weights of no name.
    """
    if options.pretrained:
        if options.model is None:
            raise OptionError("--pretrained needs --model NAME; 'vmamba models' lists them")
        return create_model(options.model, pretrained=True)
    checkpoint = open_checkpoint(options.checkpoint)
    load: Callable[..., nn.Module] = LOADERS.get(checkpoint.task, model_from_checkpoint)
    return load(checkpoint, options.model)
