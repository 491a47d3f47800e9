"""``vmamba tune``: search for better settings of a recipe, in one process or several that share a folder."""

from __future__ import annotations

import argparse
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.cli.arguments import add_device, device, positive
from vmamba.cli.train import INTERRUPTED
from vmamba.errors import MissingPackageError, OptionError
from vmamba.files import atomic_write, lock
from vmamba.progress import remark
from vmamba.tasks import task_class
from vmamba.tasks.spelling import spelled
from vmamba.training.distributed import Processes
from vmamba.training.interruption import Interrupted, StopRequests
from vmamba.training.recipe import Recipe, override
from vmamba.training.recipe_files import FINETUNE, SCRATCH, load_recipe, parse_overrides

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands
    from vmamba.tuning.study import SharedStudy

#: Fraction of the training images that a search validates on, so that it never sees the validation split.
HOLDOUT = 0.2

EXAMPLES = f"""examples:
  vmamba tune --data photos --model vmamba_pico --trials 30
  vmamba tune --data photos --checkpoint model.safetensors --hours 2 --set epochs=10
  vmamba tune --data photos --model vmamba_pico --space space.yaml     # lr: {{low: 1e-4, high: 1e-2, log: true}}

The same command goes on with what is in the output folder, and several at once share it.

exit status: 0 done, 2 error, {INTERRUPTED} stopped after saving (the same command goes on)."""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("tune", help="search for better settings of a recipe", epilog=EXAMPLES)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="as for 'vmamba train'")
    parser.add_argument("--recipe", metavar="NAME", help="the default to begin with, as for 'vmamba train'")
    parser.add_argument("--model", metavar="NAME", help="see 'vmamba models'")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to start from")
    parser.add_argument("--pretrained", action="store_true", help="start from the authors' weights")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="any other field")
    parser.add_argument("--trials", type=positive, default=30, metavar="N", help="in all (default 30)")
    parser.add_argument("--hours", type=float, default=math.inf, metavar="H", help="begin no trial after so long")
    parser.add_argument("--space", type=Path, metavar="FILE", help="YAML: what to search instead of the usual")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="for the comparison (default 3)")
    parser.add_argument("--output", type=Path, default=Path("runs/tune"), metavar="FOLDER", help="default runs/tune")
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with StopRequests() as stop:
        try:
            return _run(options, stop)
        except Interrupted:
            print("vmamba: stopped, and nothing is lost; the same command goes on", file=sys.stderr)
            return INTERRUPTED


def _run(options: argparse.Namespace, stop: StopRequests) -> int:
    from vmamba.tuning.comparison import compare, has_third_split
    from vmamba.tuning.search import recipe_of, search, write_trials
    from vmamba.tuning.space import default_space, read_space
    from vmamba.tuning.study import SharedStudy

    original = _recipe(options)
    third = has_third_split(original)
    recipe = Recipe.of(override(original.as_dict(), {"holdout": HOLDOUT})) if third else original
    space = read_space(options.space, recipe) if options.space else default_space(recipe)
    processes = Processes(device(options.device))
    shared = SharedStudy(options.output, recipe, space, task_class(recipe.task).metric)
    search(shared, processes, stop, trials=options.trials, seconds=3600 * options.hours)
    files = [write_trials(shared)]
    if not shared.completed():
        remark(f"no trial is finished yet; see {files[0]}")
        return 0
    if shared.running():
        remark(f"{shared.running()} trials are still running elsewhere; the last process compares")
        return 0
    files += _draw(shared)
    best = shared.study.best_trial
    winner = recipe_of(recipe, best)
    with atomic_write(options.output / "best.yaml") as file:
        final = Recipe.of(override(winner.as_dict(), {"holdout": original.options.holdout})) if third else winner
        file.write(final.to_yaml().encode(errors="surrogateescape"))
    remark(f"wrote {', '.join(map(str, [*files, options.output / 'best.yaml']))}")
    if best.number == 0:
        headline = f"{spelled(shared.metric.name)} {best.value:.2f}"
        remark(f"the default is the best of {len(shared.study.trials)} trials: {headline}")
        return 0
    with ExitStack() as held:
        try:
            held.enter_context(lock(options.output / "locks" / "comparison", "another process is comparing"))
        except OptionError as error:
            remark(f"{error}; nothing is left to do here")
            return 0
        seeds = [recipe.seed + 1 + i for i in range(options.seeds)]
        folder = options.output / f"comparison-{best.number:04d}"
        comparison = compare(recipe, winner, seeds, folder, processes, stop)
    seen = "the validation split, which the search has not seen" if third else "the search's own validation images"
    remark(f"trial {best.number} on {seen}: {comparison.verdict()}")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    named = {name: getattr(options, name) for name in ("data", "model", "checkpoint") if getattr(options, name)}
    if options.pretrained:
        named["pretrained"] = True
    if not options.hours > 0:
        raise OptionError(f"--hours must be above 0, got {options.hours:g}")
    name = options.recipe or (FINETUNE if options.checkpoint or options.pretrained else SCRATCH)
    return load_recipe(name, {**named, **parse_overrides(options.set)})


def _draw(shared: SharedStudy) -> list[Path]:
    from vmamba.tuning.pictures import draw_search

    try:
        return [draw_search(shared, shared.folder / "search.png")]
    except MissingPackageError as error:
        remark(f"no picture: {error}")
        return []
