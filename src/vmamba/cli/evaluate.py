"""``vmamba evaluate``: results on a validation split, at one or several input sizes."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import nn

from vmamba.cli.arguments import device, positive
from vmamba.tasks import task_class
from vmamba.training.curves import draw_sizes
from vmamba.training.distributed import Processes, init_distributed
from vmamba.training.evaluation import evaluate
from vmamba.training.loop import job_of
from vmamba.training.optimizer import autocast_dtype
from vmamba.training.recipe import FINETUNE, Recipe, load_recipe, parse_overrides

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="measure a model on a validation split")
    parser.add_argument("--recipe", default=FINETUNE, metavar="NAME", help="whose task and options to evaluate with")
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
    parser.add_argument("--output", type=Path, default=Path("evaluation"), metavar="FOLDER", help="default: evaluation")
    parser.add_argument("--device", help="cpu, cuda, mps … (default: the fastest there is)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    names = ("data", "model", "checkpoint", "pretrained", "batch_size", "workers", "strict")
    given = {name: getattr(options, name) for name in names}
    recipe = load_recipe(
        options.recipe, {**given, "model_options": {}, "accumulate": 1, **parse_overrides(options.set)}
    )
    if options.pretrained and options.model is None:
        raise ValueError("--pretrained needs --model NAME; 'vmamba models' lists them")
    recipe = dataclasses.replace(recipe, weights="model_ema" if options.ema else recipe.weights)
    recipe = _with_option(recipe, "keep_head", True)
    sizes = options.image_size or [None]
    with init_distributed(device(options.device)) as processes:
        rows: list[dict[str, float]] = []
        model: nn.Module | None = None
        for size in sizes:
            output = options.output / str(size) if len(sizes) > 1 else options.output
            model, row = _evaluate(_with_option(recipe, "image_size", size), model, processes, output)
            rows.append({"image_size": size, **row} if size else row)
        if processes.first:
            _show(rows)
            _write(rows, options.output / "results.csv")
            if len(rows) > 1:
                metric = task_class(recipe.task).metric.name
                draw_sizes(rows, metric, options.output / "sizes.png")
            print(f"wrote {options.output}")
    return 0


def _with_option(recipe: Recipe, name: str, value: Any) -> Recipe:
    """The recipe with an option of its task set, where the task has it."""
    if value is None:
        return recipe
    if not hasattr(recipe.options, name):
        if name == "image_size":
            raise ValueError(f"--image-size: {recipe.task} has no image_size; see the recipe's options")
        return recipe
    return dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, **{name: value}))


def _evaluate(
    recipe: Recipe, model: nn.Module | None, processes: Processes, output: Path
) -> tuple[nn.Module, dict[str, float]]:
    """Evaluate; the model is built the first time."""
    task = task_class(recipe.task)(job_of(recipe, processes), recipe.options)
    loader = task.val_loader()
    model = model if model is not None else task.build_model().to(processes.device)
    dtype = autocast_dtype(recipe.precision, processes.device)
    results = evaluate(task, model, loader, processes, dtype=dtype, output=output, description="evaluating")
    skipped = [line for lines in processes.gather(loader.skipped) for line in lines]
    if skipped and processes.first:
        (output / "skipped.txt").write_text("\n".join(skipped) + "\n", encoding="utf-8")
        print(f"vmamba: {len(skipped)} images could not be read and were left out; see {output / 'skipped.txt'}")
    return model, results


def _show(rows: list[dict[str, float]]) -> None:
    shown = [
        [f"{v:,.0f}" if float(v).is_integer() and abs(v) >= 1 else f"{v:.4g}" for v in row.values()] for row in rows
    ]
    if len(rows) == 1:  # upright, since detection has many numbers
        table = Table("result", "value")
        for name, value in zip(rows[0], shown[0], strict=True):
            table.add_row(name, value)
    else:
        table = Table(*rows[0])
        for values in shown:
            table.add_row(*values)
    Console().print(table)


def _write(rows: list[dict[str, float]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
