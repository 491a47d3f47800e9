"""Recipes that nobody would write, with a fixed seed: what is wrong ends in one line, before anything is trained."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vmamba.data.shapes import write_shapes
from vmamba.errors import VMambaError
from vmamba.tasks import task_class
from vmamba.training.distributed import Processes
from vmamba.training.loop import job_of
from vmamba.training.recipe_files import load_recipe
from vmamba.training.trainer import Trainer

BASES: dict[str, dict[str, Any]] = {
    "classification": {"image_size": 32, "mixup": 0.8, "auto_augment": "rand-m9", "interpolation": "bicubic"},
    "detection": {"image_size": 64, "max_size": 96, "channels": 8, "box_channels": 8, "mask_channels": 8},
    "segmentation": {"image_size": 64, "crop": 64, "channels": 8, "auxiliary_channels": 8, "scale": [0.5, 2.0]},
}
TRAINING = {
    "model": "vmamba_pico", "model_options": {"dims": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}, "epochs": 2, "lr": 1e-3,
    "batch_size": 4, "min_lr": 1e-5, "warmup_epochs": 1, "layer_decay": 0.9, "ema": 0.9, "workers": 0, "seed": 1,
    "betas": [0.9, 0.99], "schedule": "cosine", "optimizer": "adamw", "precision": "auto", "clip_grad": 1.0,
    "milestones": [1], "grad_accum_steps": 1, "save_every": None, "keep": 2, "lr_batch": 4,
}  # fmt: skip
DEEP: Any = 0
for _ in range(300):
    DEEP = [DEEP]
VALUES = [
    None, True, False, 0, 1, -1, 2, 10**9, 10**30, -(10**30), 0.5, -0.5, 1e30, 1e-30, math.nan, math.inf, -math.inf,
    "", "none", "1", "nan", "\0", "\udce9", "é" * 5000, "../../x", "cosine\nadamw", [], [1], [1, 2], [None, None],
    [[1]], {}, {"a": 1}, {1: 2}, {"dims": [10**9] * 4}, {"depths": ["a"]}, {"num_classes": 10**9}, {"weights": 1}, DEEP,
]  # fmt: skip
SCRAPS = ("", ":", "[", "{", "&a ", "*a", "!!python/object:os.system ", "\t", "- ", "'")


def mutated(values: dict[str, Any], draw: random.Random) -> str:
    """The recipe as YAML with one to three faults."""
    values = copy.deepcopy(values)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.choice((values, values, values.get("options"), values.get("model_options")))
        if not isinstance(place, dict) or not place:
            place = values
        name, kind = draw.choice(list(place)), draw.randrange(10)
        if kind < 7:
            place[name] = draw.choice(VALUES)
        elif kind == 7:
            place[name[:-1] + draw.choice("xyz")] = place.pop(name)
        elif kind == 8:
            del place[name]
        else:
            place[draw.choice((1, None, True, 2.5, "base", "task", "options"))] = draw.choice(VALUES)
    text = yaml.dump(values, allow_unicode=True)
    for _ in range(draw.choice((0, 0, 0, 1, 3))):  # faults of the text itself
        i = draw.randrange(len(text))
        text = (
            text[:i]
            + draw.choice(("", ":", "[", "{", "&a ", "*a", "!!python/object:os.system ", "\t", "- ", "'"))
            + text[i + 1 :]
        )
    return text


@pytest.fixture(scope="module")
def data(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    shapes = tmp_path_factory.mktemp("shapes")
    write_shapes(shapes, train=4, val=2, image_size=64)
    places = {"classification": images, "detection": shapes / "coco", "segmentation": shapes / "ade20k"}
    return {task: str(place) for task, place in places.items()}


@pytest.mark.parametrize(("task", "count"), [("classification", 120), ("detection", 40), ("segmentation", 40)])
def test_mutated_recipes(task: str, count: int, data: dict[str, str], tmp_path: Path) -> None:
    draw = random.Random(task)
    path, refused = tmp_path / "mutated.yaml", 0
    for _ in range(count):
        text = mutated({"task": task, **TRAINING, "options": BASES[task]}, draw)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            recipe = load_recipe(str(path), {"data": data[task]})
            job = job_of(recipe, Processes(torch.device("cpu")))
            chosen = task_class(recipe.task)(job, recipe.options)
            chosen.setup()
            trainer = Trainer(chosen, recipe.replace(options=chosen.options), Processes(torch.device("cpu")))
        except VMambaError as error:
            refused += 1
            line = str(error)
            assert "\n" not in line, text
            assert 10 < len(line) < 1000, text
        except Exception as error:
            raise AssertionError(f"{error!r} for the recipe\n{text}") from error
        else:
            assert recipe.replace().as_dict() == recipe.as_dict()
            assert trainer.steps_per_epoch > 0
    assert count / 3 < refused < count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_lr: .nan", "min_lr must be a finite number, got nan"),
        ("layer_decay: 1e30", "layer_decay must be at most 1"),
        ("options: {num_classes: 1}", "num_classes must be at least 2, got 1"),
        ("options: {num_classes: 1000000000}", "num_classes must be at most 1000000, got 1000000000"),
        ("options: {interpolation: bicubick}", "interpolation must be one of nearest, box, bilinear"),
        ("options: {auto_augment: rand-x9}", "auto_augment: timm has no policy 'rand-x9'"),
        ("lr: null", "lr must be a number, got None"),
        ("epochs: 2\nlr: 1\nepochs: 3", "'epochs' is given twice"),
        ("model_options: &a {x: *a}", "model_options must be a mapping"),
        ("a: " + "[" * 20000, "not "),
        ("epochs: " + "9" * 10000, "not YAML: Exceeds the limit"),
        ("1: 2", "unknown field 1; choose one of"),
        ("options: 3", "options must be a mapping, got 3"),
        ("task: [1]", "task must be text, got [1]"),
        ("data: !!python/object/apply:os.system ['true']", "not YAML: could not determine a constructor"),
        ("x" * 2_000_000, "larger than 1024 KB, which no recipe is"),
    ],
    ids=lambda value: value[:20],
)
def test_single_faults(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "fault.yaml"
    path.write_text(text)
    with pytest.raises(VMambaError) as caught:
        load_recipe(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
