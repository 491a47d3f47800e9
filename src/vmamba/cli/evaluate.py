"""``vmamba evaluate``: results on a validation split, at one or several input sizes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import nn

from vmamba.checkpoints.info import read_info
from vmamba.cli.arguments import add_device, add_json, add_output, positive
from vmamba.cli.precision import add_precision, inference_device
from vmamba.cli.printing import print_json
from vmamba.errors import OptionError
from vmamba.files import atomic_write, require_file
from vmamba.frozen import freeze
from vmamba.results.report import write_report
from vmamba.tables import write_csv
from vmamba.tasks import task_class
from vmamba.tasks.spelling import spelled
from vmamba.terminal import console, printable
from vmamba.training.curves import draw_sizes
from vmamba.training.distributed import Processes, init_distributed
from vmamba.training.evaluation import evaluate
from vmamba.training.log import say
from vmamba.training.loop import job_of
from vmamba.training.optimizer import autocast_dtype
from vmamba.training.recipe import Recipe
from vmamba.training.recipe_files import FINETUNE, load_recipe, parse_overrides

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

#: What evaluations write, and what it shows.
PICTURES = {
    "sizes.png": "input sizes",
    "mistakes.png": "the most confident mistakes",
    "confusion.png": "confusion",
}
TABLES = {
    "mistakes.csv": "the most confident mistakes, by name",
    "per_class.csv": "class by class",
    "iou.csv": "class by class",
    "average_precision.csv": "class by class",
    "confusion.csv": "confusion, counts",
}

EXAMPLES = """examples:
  vmamba evaluate --data photos --checkpoint runs/photos/weights/model.safetensors
  vmamba evaluate --data imagenet --pretrained --model vmamba_tiny_s1l8 --image-size 224 288 384
  vmamba evaluate --data coco --checkpoint runs/detection/weights/model.safetensors --json"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="measure a model on a validation split", epilog=EXAMPLES)
    parser.add_argument(
        "--recipe", metavar="NAME", help="whose task and options to evaluate with; default: what the checkpoint says"
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="with val/, or class folders themselves")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="weights, the authors' or ours, or a checkpoint of a run")
    source.add_argument("--pretrained", action="store_true", help="the authors' weights for --model, downloaded once")
    parser.add_argument("--ema", action="store_true", help="the checkpoint's moving average of the weights")
    parser.add_argument("--image-size", type=positive, nargs="+", metavar="PIXELS", help="one or several, for a table")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="over all processes (default 64)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="loader processes (default 2)")
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image instead of leaving it out")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="other options")
    add_output(parser, "evaluation")
    add_device(parser)
    add_precision(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.pretrained and options.model is None:
        raise OptionError("--pretrained needs --model NAME; 'vmamba models' lists them")
    recipe = _recipe(options)
    if options.precision != "float32" and recipe.precision not in ("auto", "float32"):
        raise OptionError(f"--precision {options.precision} and --set precision={recipe.precision} exclude each other")
    sizes = options.image_size or [None]
    with init_distributed(inference_device(options)) as processes:
        rows: list[dict[str, float]] = []
        model: nn.Module | None = None
        for size in sizes:
            output = options.output / str(size) if len(sizes) > 1 else options.output
            sized = recipe if size is None else _with_option(recipe, "image_size", size)
            model, row = _evaluate(sized, model, processes, output, options.precision)
            rows.append({"image_size": size, **row} if size else row)
        if processes.first:
            if options.json:
                print_json([{name: value if isfinite(value) else None for name, value in row.items()} for row in rows])
            else:
                _show(_readable(rows))
            write_csv(options.output / "results.csv", rows)
            if len(rows) > 1:
                metric = task_class(recipe.task).metric.name
                draw_sizes(rows, metric, options.output / "sizes.png")
            report = _report(options, rows)
            if not options.json:
                say(f"wrote {options.output}; {report} shows it all")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe, below the description beside the weights, below the options."""
    values: dict[str, Any] = {"model_options": {}, "grad_accum_steps": 1}
    if options.checkpoint:
        require_file(options.checkpoint)
    info = None if options.recipe or options.pretrained else read_info(options.checkpoint)
    if info is not None:
        values["task"] = info.task
        for name in ("image_size", "max_size"):
            value = getattr(info.preprocessing, name, None)
            if value is not None and name in task_class(info.task).Options.names():
                values[name] = value
    for name in ("data", "model", "checkpoint", "pretrained", "batch_size", "workers", "strict"):
        values[name] = getattr(options, name)
    values |= {"weights": "model_ema"} if options.ema else {}
    recipe = load_recipe(options.recipe or FINETUNE, {**values, **parse_overrides(options.set)})
    return _with_option(recipe, "keep_head", True)


def _with_option(recipe: Recipe, name: str, value: Any) -> Recipe:
    """The recipe with an option of its task set."""
    return recipe.replace(options=recipe.options.replace(**{name: value}))


def _evaluate(
    recipe: Recipe, model: nn.Module | None, processes: Processes, output: Path, precision: str
) -> tuple[nn.Module, dict[str, float]]:
    """Evaluate; the model is built and frozen the first time."""
    task = task_class(recipe.task)(job_of(recipe, processes), recipe.options)
    task.setup(training=False)
    loader = task.val_loader()
    model = model if model is not None else freeze(task.build_model().to(processes.device), precision)
    dtype = autocast_dtype(recipe.precision, processes.device)
    results = evaluate(task, model, loader, processes, dtype=dtype, output=output, description="evaluating")
    skipped = [line for lines in processes.gather(loader.skipped) for line in lines]
    if skipped and processes.first:
        path = output / "skipped.txt"
        with atomic_write(path) as file:
            file.writelines(f"{line}\n".encode(errors="surrogateescape") for line in skipped)
        line = f"vmamba: {len(skipped)} images could not be read and were left out; see {path}"
        print(printable(line), file=sys.stderr)
    return model, results


def _readable(rows: list[dict[str, float]]) -> list[dict[str, str]]:
    """Results as people write them."""

    def number(value: float) -> str:
        return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.4g}"

    return [{spelled(name): number(value) for name, value in row.items()} for row in rows]


def _show(rows: list[dict[str, str]]) -> None:
    if len(rows) == 1:  # one number a line, for detection has many
        table = Table("result", "value")
        for name, value in rows[0].items():
            table.add_row(name, value)
    else:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*row.values())
    console().print(table)


def _report(options: argparse.Namespace, rows: list[dict[str, float]]) -> Path:
    """Write ``report.html``: the results, the curves of the run that made the weights, pictures and tables."""
    sizes = [options.output / str(size) for size in options.image_size or []]
    folders = [options.output, *(sizes if len(sizes) > 1 else [])]
    pictures = _named(folders, PICTURES)
    if options.checkpoint and (curves := Path(options.checkpoint).parent.parent / "curves.png").is_file():
        pictures = {"training": curves} | pictures
    title = f"Evaluation of {options.checkpoint or options.model} on {options.data}"
    return write_report(options.output / "report.html", title, _readable(rows), pictures, _named(folders, TABLES))


def _named(folders: list[Path], files: Mapping[str, str]) -> dict[str, Path]:
    """Those of the files that are there, by what they show."""
    present: dict[str, Path] = {}
    for folder in folders:
        size = "" if folder is folders[0] else f", {folder.name} pixels"
        present |= {f"{what}{size}": folder / name for name, what in files.items() if (folder / name).is_file()}
    return present
