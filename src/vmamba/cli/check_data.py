"""``vmamba check-data``: what training would find in a data set, without training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.data.annotations import AnnotationError
from vmamba.tasks import TASKS, task_class
from vmamba.tasks.protocol import Job
from vmamba.terminal import console, printable
from vmamba.training.recipe import Recipe, override
from vmamba.training.recipe_files import load_recipe, parse_overrides

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba check-data --data photos
  vmamba check-data --data coco --task detection --verify --json"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "check-data", help="look at a data set as training would: counts, faults, remarks", epilog=EXAMPLES
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="as for 'vmamba train'")
    parser.add_argument("--task", choices=list(TASKS), help="default: the recipe's, or what the folder looks like")
    parser.add_argument("--recipe", metavar="NAME", help="name or YAML file, for its options")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="other options")
    parser.add_argument("--verify", action="store_true", help="read every image, too")
    parser.add_argument("--strict", action="store_true", help="take what would be left out for an error")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    overrides = {"data": options.data, "strict": options.strict, **parse_overrides(options.set)}
    if options.task or not options.recipe:
        overrides["task"] = options.task or guess_task(Path(options.data))
    recipe = load_recipe(options.recipe, overrides) if options.recipe else Recipe.of(override({}, overrides))
    names = ("batch_size", "seed", "strict", "max_pixels")
    job = Job(data=options.data, **{name: getattr(recipe, name) for name in names})
    task = task_class(recipe.task)(job, recipe.options)
    try:
        task.setup()
        summary = task.summary(verify=options.verify)
    except AnnotationError as error:
        for fault in error.faults if len(error.faults) > 1 else ():
            print(printable(fault))
        raise
    if options.json:
        print(json.dumps(summary.as_dict(), indent=2))
    else:
        summary.show(console(), max_classes=None)
    return 0


def guess_task(root: Path) -> str:
    """The task whose layout a folder has: COCO's annotation files, ADE20K's folders of label maps, or class folders."""
    if any((root / "annotations").glob("instances_*.json")):
        return "detection"
    return "segmentation" if (root / "images").is_dir() and (root / "annotations").is_dir() else "classification"
