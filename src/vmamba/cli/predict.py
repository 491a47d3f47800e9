"""``vmamba predict``: classify images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vmamba.checkpoints.info import info_of
from vmamba.cli.arguments import add_device, add_images, add_json, device, positive
from vmamba.cli.exported import add_engine, exported_model
from vmamba.cli.results import Failures, printer
from vmamba.data.images import find_images
from vmamba.errors import CheckpointError, OptionError
from vmamba.frozen import freeze
from vmamba.model.backbone import VMamba
from vmamba.progress import progress_bar
from vmamba.tasks.classification.prediction import Prediction, class_names, eval_transform, predict
from vmamba.zoo import create_model, model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba predict photos --checkpoint runs/finetune/weights/model.safetensors
  vmamba predict 'photos/*.jpg' --model vmamba_tiny_s1l8 --pretrained --topk 1 --json"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("predict", help="classify images", epilog=EXAMPLES)
    add_images(parser)
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, the authors' or ours")
    source.add_argument("--pretrained", action="store_true", help="the authors' weights for --model, downloaded once")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names, one per line (default: the checkpoint's, ImageNet's)"
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes per image (default 5)")
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="of the input (default: the checkpoint's, or 224)"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default 16")
    add_engine(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    paths = find_images(options.images)
    model: Any = exported_model(options, "classification")
    target = torch.device("cpu") if model else device(options.device)
    model = model or freeze(_classifier(options).to(target))
    names = class_names(model.num_classes, options.labels, info_of(model).class_names)
    failures = Failures()
    with printer(options.json, written=False) as show:
        for prediction in predict(
            model,
            _with_progress(paths),
            transform=eval_transform(model, options.image_size),
            topk=options.topk,
            batch_size=options.batch_size,
            device=target,
            max_pixels=options.max_pixels,
            on_error=failures.add,
        ):
            show([_record(prediction, names)], _lines(prediction, names))
    return failures.finish()


def _classifier(options: argparse.Namespace) -> VMamba:
    if options.pretrained:
        if options.model is None:
            raise OptionError("--pretrained needs --model NAME; 'vmamba models' lists them")
        return cast(VMamba, create_model(options.model, pretrained=True))
    model = model_from_checkpoint(options.checkpoint, options.model, in_chans=3)
    if not model.num_classes:
        raise CheckpointError(f"{options.checkpoint}: holds a backbone without a classifier, which cannot predict")
    return model


def _with_progress(paths: list[Path]) -> Iterator[Path]:
    """The paths, with a bar on the terminal while they are used up."""
    with progress_bar("images") as bar:
        yield from bar.track(paths, description="predicting")


def _record(prediction: Prediction, names: Sequence[str]) -> dict[str, Any]:
    classes = zip(prediction.classes, prediction.probabilities, strict=True)
    ranked = [{"index": i, "label": names[i], "probability": p} for i, p in classes]
    return {"image": str(prediction.path), "predictions": ranked}


def _lines(prediction: Prediction, names: Sequence[str]) -> list[str]:
    ranked = zip(prediction.probabilities, prediction.classes, strict=True)
    return [str(prediction.path), *(f"{p:7.1%}  {names[i]}" for p, i in ranked)]
