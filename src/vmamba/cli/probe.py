"""``vmamba probe``: frozen features by simple classifiers, beside raw pixels and the same model untrained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from vmamba.cli.arguments import add_device, add_json, add_output, device, positive
from vmamba.cli.printing import print_json
from vmamba.data.image_dataset import read_file
from vmamba.errors import MissingPackageError
from vmamba.model.backbone import VMamba
from vmamba.progress import remark
from vmamba.studies.feature_pictures import draw_features, draw_scores, nearest, shown
from vmamba.studies.features import PIXEL_SIZE, PIXELS, TRAINED, UNTRAINED, Features, extract, untrained
from vmamba.studies.probing import Score, probe, summary
from vmamba.tables import Row, write_csv
from vmamba.tasks.classification.options import ClassificationOptions
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import Job
from vmamba.terminal import console
from vmamba.zoo import model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba probe --data digits --checkpoint runs/pretrained/weights/model.safetensors
  vmamba probe --data photos --checkpoint model.safetensors --labels-per-class 1 5 20 all --seeds 5"""


def labels(text: str) -> int | None:
    """A number of labels, or ``all``."""
    return None if text == "all" else positive(text)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "probe", help="measure frozen features by simple classifiers on few labels", epilog=EXAMPLES
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="train/ and val/ with a folder per class")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="weights, of any classifier or backbone")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    parser.add_argument(
        "--labels-per-class", type=labels, nargs="+", default=[2, 10, None], metavar="N|all", help="default: 2 10 all"
    )
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="choices of the labels (default 3)")
    parser.add_argument(
        "--holdout", type=float, default=0.0, metavar="FRACTION", help="measure on these instead of val/"
    )
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="default: the checkpoint's")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="default 64")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="loader processes (default 2)")
    add_output(parser, "probe")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    task = _task(options)
    model = model_from_checkpoint(options.checkpoint, options.model, in_chans=3).to(device(options.device)).eval()
    models = {TRAINED: model, UNTRAINED: untrained(model)}
    train = extract(models, task.evaluation_loader("train"), "training images")
    val = extract(models, task.evaluation_loader("val"), "validation images")
    scores = list(probe(train, val, options.labels_per_class, options.seeds))
    rows = summary(scores)
    written = [write_csv(options.output / "probe.csv", list(map(_row, scores)))]
    try:
        draw_scores(options.output / "probe.png", rows)
        _draw_images(options.output / "features.png", task, train, val, models)
        written += [options.output / name for name in ("probe.png", "features.png")]
    except MissingPackageError as error:
        remark(f"no pictures: {error}")
    if options.json:
        print_json(rows)
        return 0
    table = Table("labels per class", "probe", "features", "accuracy, %", "from", "to", title="on validation images")
    for row in rows:
        table.add_row(
            *(str(row[name]) for name in ("labels_per_class", "probe", "features", "accuracy")),
            *(str(row[name]) if row["seeds"] != 1 else "" for name in ("lowest", "highest")),
        )
    console().print(table)
    remark(f"wrote {', '.join(map(str, written))}")
    return 0


def _task(options: argparse.Namespace) -> Classification:
    job = Job(
        data=options.data,
        model=options.model,
        checkpoint=options.checkpoint,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    task = Classification(
        job, ClassificationOptions(keep_head=True, holdout=options.holdout, image_size=options.image_size)
    )
    task.setup()
    return task


def _row(score: Score) -> Row:
    count = "all" if score.labels_per_class is None else score.labels_per_class
    names = {"labels_per_class": count, "probe": score.probe, "features": score.features}
    return {**names, "seed": score.seed, "accuracy": round(score.accuracy, 3)}


def _draw_images(path: Path, task: Classification, train: Features, val: Features, models: dict[str, VMamba]) -> None:
    chosen = shown(val)
    images = torch.stack([_image(task, val.files[i]) for i in chosen])
    neighbours = nearest(train.values[TRAINED], val.values[TRAINED][chosen])
    draw_features(
        path,
        models,
        images.to(next(models[TRAINED].parameters()).device),
        [_picture(task, val, i) for i in chosen],
        [task.labels[val.labels[i]] for i in chosen],
        [[(_picture(task, train, j), task.labels[train.labels[j]]) for j in row] for row in neighbours],
    )


def _image(task: Classification, name: str) -> Tensor:
    """A validation image as the model sees it."""
    files = task.data.val
    index = next(i for i in task.data.val_indices if files.name(i) == name)
    return task.eval_transform()(read_file(files, index))


def _picture(task: Classification, features: Features, index: int) -> NDArray[np.uint8]:
    """An image for people, (H, W, 3), from its averaged pixels."""
    prepare, pixels = task.preprocessing, features.values[PIXELS][index].reshape(3, PIXEL_SIZE, PIXEL_SIZE)
    levels = pixels.transpose(1, 2, 0) * prepare.std + prepare.mean
    return (levels.clip(0, 1) * 255).round().astype(np.uint8)
