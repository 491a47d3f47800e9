"""Spaces: the usual ones, one's own, and what they make of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmamba.errors import OptionError
from vmamba.tasks import TASKS
from vmamba.training.recipe_files import list_recipes, load_recipe
from vmamba.tuning.space import Choice, Range, applied, current_value, default_space, read_space


@pytest.mark.parametrize("name", list_recipes())
def test_usual_spaces(name: str) -> None:
    """Hold the recipe's own values, and applying those changes nothing."""
    recipe = load_recipe(name)
    space = default_space(recipe)
    values = {setting: current_value(recipe, setting) for setting in space}
    for setting, dimension in space.items():
        if isinstance(dimension, Range):
            assert dimension.low <= values[setting] <= dimension.high, setting
            assert dimension.low > 0 or not dimension.log
        else:
            assert values[setting] in dimension.values
    if recipe.layer_decay is None:
        assert values.pop("layer_decay", 1.0) == 1.0  # which is none
    options = {} if recipe.model_options.get("drop_path_rate") else {"model_options": recipe.model_options}
    assert applied(recipe, {**values, **options}) == recipe


def test_every_task_has_one() -> None:
    tasks = {load_recipe(name).task for name in list_recipes()}
    assert tasks == set(TASKS)


def test_bad_default_is_within() -> None:
    """The range of the learning rate reaches from one that is far too small to useful ones."""
    space = default_space(load_recipe("scratch", {"lr": 1e-7}))
    assert space["lr"] == Range(low=1e-7, high=1e-2, log=True)
    assert default_space(load_recipe("scratch", {"lr": 1.0}))["lr"] == Range(low=1e-4, high=30.0, log=True)
    assert "layer_decay" not in space
    assert "layer_decay" in default_space(load_recipe("finetune", {"checkpoint": "file"}))


def test_parts_of_settings() -> None:
    recipe = load_recipe("scratch")
    changed = applied(recipe, {"model_options.drop_path_rate": 0.3, "crop_scale.0": 0.2, "ema": None, "lr": 1e-3})
    assert changed.model_options == {"drop_path_rate": 0.3}
    assert changed.options.crop_scale == (0.2, 1.0)
    assert (changed.ema, changed.lr) == (None, 1e-3)
    assert changed.replace(model_options=recipe.model_options, options=recipe.options, ema=0.998, lr=3e-3) == recipe


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "lr: {low: 1e-3, high: 2e-3, log: true}\noptimizer: [muon, lamb]\nepochs: {low: 2, high: 4, integer: true}"
    )
    assert read_space(path, load_recipe("scratch")) == {
        "lr": Range(low=1e-3, high=3e-3, log=True),  # widened to the recipe's own
        "optimizer": Choice(("adamw", "muon", "lamb")),
        "epochs": Range(low=2, high=20, integer=True),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "a space is a mapping"),
        ("weight_dcay: {low: 1, high: 2}", "weight_dcay: unknown field 'weight_dcay'; do you mean"),
        ("lr: {low: 2, high: 1}", "lr: low must be below high, got 2 to 1"),
        ("lr: {low: 0, high: 1, log: true}", "lr: low must be below high, and above 0"),
        ("lr: {low: 1}", "lr: high must be"),
        ("lr: [1]", "lr: choices are a list of two values or more"),
        ("crop_scale.7: {low: 0.1, high: 0.2}", "crop_scale.7: crop_scale has no part '7'"),
        ("lr: 3", "lr: give a list of choices, or low and high"),
        (": :", "not YAML"),
    ],
)
def test_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(OptionError) as caught:
        read_space(path, load_recipe("scratch"))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    nothing: Any = tmp_path / "nothing.yaml"
    with pytest.raises(OptionError, match="cannot read the space"):
        read_space(nothing, load_recipe("scratch"))
