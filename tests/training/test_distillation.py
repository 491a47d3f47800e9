"""A student of a trained teacher, on digits whose own labels are drawn at random: it knows what the teacher does."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from vmamba.demo import write_digits
from vmamba.training.distributed import Processes
from vmamba.training.loop import train
from vmamba.training.recipe_files import load_recipe

CPU = Processes(torch.device("cpu"))
SETTINGS = {
    "model": "vmamba_pico", "workers": 0, "image_size": 32, "epochs": 5, "batch_size": 32, "validate_every": 5,
    "ema": 0.98,
}  # fmt: skip


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    data, wrong = write_digits(tmp_path / "digits"), tmp_path / "wrong"
    shutil.copytree(data, wrong)
    chooser = random.Random(0)
    for path in sorted((wrong / "train").glob("*/*.png")):
        path.rename(wrong / "train" / str(chooser.randrange(10)) / f"{path.parent.name}-{path.name}")
    few = {"data": str(data), "epochs": 3, "validate_every": 3}
    teacher = train(load_recipe("scratch", {**SETTINGS, **few}), tmp_path / "teacher", CPU)
    assert teacher.best is not None
    assert teacher.best > 93
    weights = str(tmp_path / "teacher" / "weights" / "model.safetensors")
    taught = {"teacher": "vmamba_pico", "teacher_checkpoint": weights, "teacher_weight": 1.0}
    small = {"model_options": {"dims": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}}
    student = train(
        load_recipe("scratch", {**SETTINGS, **taught, **small, "data": str(wrong)}), tmp_path / "student", CPU
    )
    assert student.best is not None
    assert student.best > 85  # by its own labels it would be 10
