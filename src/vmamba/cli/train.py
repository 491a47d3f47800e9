"""``vmamba train``: train or fine-tune, on one process or under torchrun."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.cli.arguments import add_device, device
from vmamba.files import refuse_overwriting
from vmamba.tasks.spelling import spelled
from vmamba.training.distributed import init_distributed, restarted
from vmamba.training.interruption import Interrupted, StopRequests
from vmamba.training.log import say
from vmamba.training.loop import train
from vmamba.training.nonfinite import Diverged
from vmamba.training.recipe_files import FINETUNE, SCRATCH, list_recipes, load_recipe, parse_overrides

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

#: Exit status where the loss is not finite.
DIVERGED = 3
#: Exit status of a run that was asked to stop and can be continued ("temporary failure" in sysexits.h).
INTERRUPTED = 75

_NAMES = ("data", "model", "checkpoint")
_SHORTHANDS = ("epochs", "batch_size", "lr", "image_size", "workers", "seed")

_RECIPE = f"name or YAML file (default {FINETUNE} with weights to start from, {SCRATCH} without)"

_EPILOG = f"""examples:
  vmamba train --data photos --model vmamba_pico
  vmamba train --data photos --model vmamba_tiny_s1l8 --pretrained --epochs 10 --set mixup=0.2
  vmamba train --recipe coco/vmamba_tiny_s1l8_1x --data coco --output runs/coco --resume auto
  torchrun --nproc-per-node 8 -m vmamba train --recipe imagenet/vmamba_tiny_s1l8 --data imagenet

recipes: {", ".join(list_recipes())}

exit status: 0 done, 2 error, 70 a bug, {DIVERGED} the loss is not finite, {INTERRUPTED} stopped by SIGTERM, SIGUSR1 or
Ctrl-C before the first step or after saving (the same command with --resume auto continues), 130 a second Ctrl-C."""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("train", help="train or fine-tune a model", epilog=_EPILOG)
    parser.add_argument("--recipe", metavar="NAME", help=_RECIPE)
    parser.add_argument("--data", metavar="FOLDER", help="train/ and val/ with a folder of images per class")
    parser.add_argument("--model", metavar="NAME", help="see 'vmamba models'")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to start from; the classifier is a fresh one")
    parser.add_argument("--pretrained", action="store_true", help="start from the authors' weights, downloaded once")
    for name in _SHORTHANDS:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"short for --set {name}=VALUE")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="any other field")
    parser.add_argument("--strict", action="store_true", help="stop at an unreadable image instead of leaving it out")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="of the run (default runs/RECIPE)")
    parser.add_argument(
        "--resume", metavar="auto|FILE", help="continue from the newest checkpoint in the output, or FILE"
    )
    add_device(parser)
    parser.add_argument("--print-config", action="store_true", help="print the recipe as it would be run, and stop")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with StopRequests() as stop:
        try:
            return _run(options, stop)
        except Interrupted as interrupted:
            print(f"vmamba: {interrupted}", file=sys.stderr)
            return INTERRUPTED
        except Diverged as diverged:
            print(f"vmamba: error: {diverged}", file=sys.stderr)
            return DIVERGED


def _run(options: argparse.Namespace, stop: StopRequests) -> int:
    given = [f"{name}={getattr(options, name)}" for name in _SHORTHANDS if getattr(options, name) is not None]
    given += [f"{name}=true" for name in ("strict", "pretrained") if getattr(options, name)]
    named = {name: getattr(options, name) for name in _NAMES if getattr(options, name) is not None}
    if options.checkpoint and not options.pretrained:
        named["pretrained"] = False  # in the place of those that the recipe starts from
    name = options.recipe or (FINETUNE if options.checkpoint or options.pretrained else SCRATCH)
    recipe = load_recipe(name, {**named, **parse_overrides([*given, *options.set])})
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    output = options.output or Path("runs") / name.removesuffix(".yaml")
    if not (output / "checkpoints").exists():  # else it is the run's own
        refuse_overwriting([output / "recipe.yaml"], [Path(name)])
    resume = options.resume or ("auto" if restarted() else None)
    with init_distributed(device(options.device)) as processes:
        result = train(recipe, output, processes, resume=resume, stop=stop)
    if processes.first:
        best = "never a number" if result.best is None else f"{result.best:.2f}"
        say(f"best {spelled(result.metric.name)}: {best}; wrote {', '.join(map(str, result.files)) or 'nothing new'}")
    return 0
