"""``vmamba predict``: classify images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vmamba.checkpoints.info import info_of
from vmamba.cli.arguments import add_device, positive
from vmamba.cli.exported import add_engine, exported_model
from vmamba.cli.precision import add_precision, inference_device
from vmamba.cli.results import Listing, Results, add_work, refuse_inputs, results_of
from vmamba.data.decoding import Batch, DecodedBatches
from vmamba.errors import CheckpointError, ImageError, MissingPackageError, OptionError
from vmamba.files import require_file
from vmamba.frozen import freeze
from vmamba.model.backbone import VMamba
from vmamba.progress import remark
from vmamba.tasks.classification.pictures import Tile, caption, draw_sheet, reduced, thumbnail
from vmamba.tasks.classification.prediction import (
    Prediction,
    Transform,
    as_pixels,
    class_names,
    classify,
    eval_transform,
    evaluation_config,
)
from vmamba.terminal import printable
from vmamba.zoo import create_model, model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba predict photos --checkpoint runs/finetune/weights/model.safetensors
  vmamba predict photos --checkpoint model.safetensors --picture sheet.png
  vmamba predict 'photos/*.jpg' --model vmamba_tiny_s1l8 --pretrained --topk 1 --json
  vmamba predict 'shards/*.tar' --checkpoint model.safetensors --output results.parquet --resume
  find / -name '*.jpg' | vmamba predict - --checkpoint model.safetensors --output results.jsonl --shard 0/8"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("predict", help="classify images", epilog=EXAMPLES)
    add_work(parser, None)
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
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help=f"a contact sheet, .png or .svg, of the first {SHOWN} images"
    )
    add_engine(parser, "ray")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="of a Ray cluster (default: one on this machine)")
    parser.add_argument("--ray-actors", type=positive, metavar="N", help="default: one a GPU, or one for every CPU")
    add_device(parser)
    add_precision(parser)
    parser.set_defaults(run=run)


#: Images in a contact sheet.
SHOWN = 48

#: Columns of a row.
COLUMNS = {
    "image": "string",
    "predictions": [{"index": "int32", "label": "string", "probability": "float32"}],
    "error": "string",
}


def run(options: argparse.Namespace) -> int:
    listing = Listing(options)
    if options.engine == "ray":
        return _on_ray(options, listing)
    model: Any = exported_model(options, "classification")
    target = torch.device("cpu") if model else inference_device(options)
    model = model or freeze(classifier(options).to(target), options.precision)
    transform = as_pixels if getattr(model, "takes_pixels", False) else eval_transform(model, options.image_size)
    if transform is as_pixels:
        if options.image_size:
            raise OptionError(f"{options.checkpoint}: takes images of any size, resized inside; leave out --image-size")
        options.batch_size = 1  # images differ in size
    names = class_names(model.num_classes, options.labels, info_of(model).class_names)
    sheet = _ContactSheet(options, model) if options.picture else None
    with results_of(options, listing, COLUMNS, rows="predictions.jsonl") as results:
        batches = decoded(options, listing, results, transform)
        seen = sheet.seen(batches) if sheet else batches
        for prediction in classify(model, seen, topk=options.topk, device=target, on_error=results.fail):
            results.add(_record(prediction, names), _lines(prediction, names))
            if sheet:
                sheet.add(prediction, names)
        if sheet:
            sheet.write()
    return results.finish(batches.waited)


class _ContactSheet:
    """The first images, as the model sees them, with what they are taken for."""

    def __init__(self, options: argparse.Namespace, model: Any) -> None:
        path: Path = options.picture
        if path.suffix not in (".png", ".svg"):
            raise OptionError(f"{path}: the name of a picture must end in .png or .svg")
        refuse_inputs(options, [path])
        if path.exists() and not options.overwrite:
            raise OptionError(f"{path} exists: --overwrite replaces it")
        if find_spec("matplotlib") is None:  # before hours of work
            raise MissingPackageError("matplotlib", "analysis")
        config = evaluation_config(model, options.image_size)
        self.path, self._mean, self._std = path, config["mean"], config["std"]
        self._pixels: list[Any] = []
        self._tiles: list[Tile] = []

    def seen(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, after a look at the first images."""
        for batch in batches:
            for image in () if batch.values is None else batch.values[: SHOWN - len(self._pixels)]:
                prepared = image.dtype != torch.uint8
                small = thumbnail(image, self._mean, self._std) if prepared else reduced(image.numpy())
                self._pixels.append(small)
            yield batch

    def add(self, prediction: Prediction, names: Sequence[str]) -> None:
        if len(self._tiles) < len(self._pixels):
            best = caption(names[prediction.classes[0]], prediction.probabilities[0])
            text = f"{best}\n{printable(prediction.path.name)[-24:]}"
            self._tiles.append(Tile(self._pixels[len(self._tiles)], text))

    def write(self) -> None:
        if self._tiles:
            draw_sheet(self.path, self._tiles)
            remark(f"wrote {self.path}")


def _on_ray(options: argparse.Namespace, listing: Listing) -> int:
    """Predict on a Ray cluster, whose actors load the checkpoint themselves."""
    from vmamba.integrations.ray import classify_on_ray

    if options.checkpoint is None or options.device:
        raise OptionError("--engine ray takes --checkpoint FILE at a path that every node sees, and no --device")
    if options.picture:
        raise OptionError("--picture is not for --engine ray, whose images are read elsewhere; leave it out")
    require_file(options.checkpoint)
    predictor = {
        "checkpoint": str(options.checkpoint.resolve()),
        "model": options.model,
        "labels": options.labels and str(options.labels.resolve()),
        "topk": options.topk,
        "image_size": options.image_size,
        "max_pixels": options.max_pixels,
        "precision": options.precision,
    }
    with results_of(options, listing, COLUMNS, rows="predictions.jsonl") as results:
        images = (image._replace(path=_absolute(image.path)) for image in results.images)
        for row in classify_on_ray(
            images, predictor, address=options.ray_address, actors=options.ray_actors, batch_size=options.batch_size
        ):
            if row["error"] is not None:
                results.fail(row["image"], ImageError(row["error"]))
            else:
                ranked = [f"{entry['probability']:7.1%}  {entry['label']}" for entry in row["predictions"]]
                results.add({"image": row["image"], "predictions": row["predictions"]}, [row["image"], *ranked])
    return results.finish()


def _absolute(path: str) -> str:
    """The path as actors, which run in another folder, find it."""
    return path if "://" in path else os.path.abspath(path)


def decoded(options: argparse.Namespace, listing: Listing, results: Results, transform: Transform) -> DecodedBatches:
    """Batches of the images that are to do."""
    return DecodedBatches(
        results.images,
        transform,
        torch.stack,
        batch_size=options.batch_size,
        workers=listing.workers,
        max_pixels=options.max_pixels,
    )


def classifier(options: argparse.Namespace) -> VMamba:
    """The model that the options name."""
    if options.pretrained:
        if options.model is None:
            raise OptionError("--pretrained needs --model NAME; 'vmamba models' lists them")
        return cast(VMamba, create_model(options.model, pretrained=True))
    model = model_from_checkpoint(options.checkpoint, options.model, in_chans=3)
    if not model.num_classes:
        raise CheckpointError(f"{options.checkpoint}: holds a backbone without a classifier, which cannot predict")
    return model


def _record(prediction: Prediction, names: Sequence[str]) -> dict[str, Any]:
    classes = zip(prediction.classes, prediction.probabilities, strict=True)
    ranked = [{"index": i, "label": names[i], "probability": p} for i, p in classes]
    return {"image": prediction.image, "predictions": ranked}


def _lines(prediction: Prediction, names: Sequence[str]) -> list[str]:
    ranked = zip(prediction.probabilities, prediction.classes, strict=True)
    return [prediction.image, *(f"{p:7.1%}  {names[i]}" for p, i in ranked)]
