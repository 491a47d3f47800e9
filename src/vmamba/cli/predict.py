"""``vmamba predict``: classify images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.table import Column, Table

from vmamba.cli.arguments import device, positive
from vmamba.data.images import find_images
from vmamba.errors import ImageError
from vmamba.model.backbone import VMamba
from vmamba.progress import progress_bar
from vmamba.tasks.classification.prediction import Prediction, class_names, eval_transform, predict
from vmamba.zoo import create_model, model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("predict", help="classify images")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or quoted glob patterns")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, the authors' or ours")
    source.add_argument("--pretrained", action="store_true", help="the authors' weights for --model, downloaded once")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one per line; default: ImageNet's")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes per image (default 5)")
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="side of the input (default 224)")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default 16")
    parser.add_argument("--device", help="cpu, cuda, mps … (default: the fastest there is)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    paths = find_images(options.images)
    target = device(options.device)
    model = _classifier(options)
    names = class_names(model.num_classes, options.labels)
    failures: list[ImageError] = []
    predictions = predict(
        model,
        _with_progress(paths),
        transform=eval_transform(model, options.image_size),
        topk=options.topk,
        batch_size=options.batch_size,
        device=target,
        on_error=failures.append,
    )
    done = list(predictions)
    if options.json:
        print(json.dumps([_as_json(p, names) for p in done], indent=2, ensure_ascii=False))
    elif done:
        _print_table(done, names)
    for failure in failures:
        print(f"vmamba: skipped: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _classifier(options: argparse.Namespace) -> VMamba:
    if options.pretrained:
        if options.model is None:
            raise ValueError("--pretrained needs --model NAME; 'vmamba models' lists them")
        return cast(VMamba, create_model(options.model, pretrained=True))
    model = model_from_checkpoint(options.checkpoint, options.model)
    if not model.num_classes:
        raise ValueError(f"{options.checkpoint}: holds a backbone without a classifier, which cannot predict")
    return model


def _with_progress(paths: list[Path]) -> Iterator[Path]:
    """The paths, with a bar on the terminal while they are used up."""
    with progress_bar("images") as bar:
        yield from bar.track(paths, description="predicting")


def _print_table(predictions: list[Prediction], names: Sequence[str]) -> None:
    table = Table(Column("image", overflow="fold"), "class", "probability")
    for prediction in predictions:
        for i, (index, probability) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True)):
            last = i == len(prediction.classes) - 1
            table.add_row(str(prediction.path) if i == 0 else "", names[index], f"{probability:.1%}", end_section=last)
    Console().print(table)


def _as_json(prediction: Prediction, names: Sequence[str]) -> dict[str, object]:
    classes = zip(prediction.classes, prediction.probabilities, strict=True)
    ranked = [{"index": i, "label": names[i], "probability": p} for i, p in classes]
    return {"image": str(prediction.path), "predictions": ranked}
