"""``vmamba convert``: a checkpoint as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from vmamba.checkpoints.info import info_path
from vmamba.checkpoints.reading import Weights
from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import OptionError
from vmamba.files import refuse_overwriting
from vmamba.model.config import VMambaConfig
from vmamba.progress import remark
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.zoo import model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba convert vssm1_tiny_0230s_ckpt_epoch_264.pth vmamba_tiny.safetensors
  vmamba convert runs/finetune/checkpoints/best.pt --weights model_ema"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "convert", help="turn a checkpoint into safetensors with its description beside it", epilog=EXAMPLES
    )
    parser.add_argument("source", type=Path, help="the checkpoint")
    parser.add_argument("target", type=Path, nargs="?", help="default: SOURCE with the ending .safetensors")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    parser.add_argument("--config", type=Path, metavar="YAML", help="the authors' YAML of the model instead")
    parser.add_argument("--weights", choices=get_args(Weights), default="auto", help="which of the file's weights")
    parser.add_argument("--force", action="store_true", help="replace the target if it exists")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    target = options.target or options.source.with_suffix(".safetensors")
    outputs = [target, info_path(target)]
    refuse_overwriting(outputs, [path for path in (options.source, options.config) if path is not None])
    for path in outputs:
        if path.exists() and not options.force:
            raise OptionError(f"{path} exists; name another target, or replace it with --force")
    config = VMambaConfig.from_author_yaml(options.config) if options.config else None
    checkpoint = open_checkpoint(options.source, options.weights)
    if checkpoint.task == "classification":
        save_weights(model_from_checkpoint(checkpoint, options.model, config=config), target)
    else:
        load = load_detector if checkpoint.task == "detection" else load_segmenter
        save_weights(load(checkpoint, options.model, backbone=config), target)
    remark(f"wrote {target} and {info_path(target)}")
    return 0
