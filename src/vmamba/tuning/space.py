"""Search spaces: which settings of a recipe are tried, and in which ranges."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from vmamba.errors import OptionError, system_reason
from vmamba.files import require_file
from vmamba.settings import Settings
from vmamba.training.recipe import Recipe, override
from vmamba.training.recipe_files import parse_yaml

#: A value that Optuna can choose among others.
Value = str | int | float | bool | None
Number = Annotated[float, Field(strict=False)]


class Range(Settings):
    """Numbers from `low` to `high`.

    Attributes:
        low: Smallest.
        high: Largest.
        log: Try orders of magnitude alike.
        integer: Whole numbers alone.
    """

    low: Number
    high: Number
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Choice:
    """Some values, of which no one lies between two others."""

    values: tuple[Value, ...]


#: Name of a setting → what is tried. A name is that of a field of the recipe or of an option of its task, perhaps with
#: that of a part: ``model_options.drop_path_rate``, ``crop_scale.0``.
Space = Mapping[str, Range | Choice]

_OPTIMISER: Space = {"lr": Range(low=1e-4, high=1e-2, log=True), "weight_decay": Range(low=1e-3, high=0.3, log=True)}
_MODEL: Space = {"model_options.drop_path_rate": Range(low=0.0, high=0.4), "ema": Choice((None, 0.99, 0.998, 0.9998))}
#: Task → its usual space. Nothing is flipped or recoloured: that would change what some images mean.
_SPACES: dict[str, Space] = {
    "classification": {
        **_OPTIMISER,
        **_MODEL,
        "crop_scale.0": Range(low=0.1, high=1.0),
        "mixup": Range(low=0.0, high=0.8),
        "random_erasing": Range(low=0.0, high=0.4),
        "label_smoothing": Range(low=0.0, high=0.2),
    },
    "segmentation": {**_OPTIMISER, **_MODEL, "scale.0": Range(low=0.4, high=1.0), "scale.1": Range(low=1.0, high=2.5)},
    "detection": {**_OPTIMISER, **_MODEL},
    "lejepa": {
        **_OPTIMISER,
        "sigreg_weight": Range(low=0.01, high=0.1, log=True),
        "local_scale.0": Range(low=0.05, high=0.4),
        "global_scale.0": Range(low=0.2, high=0.8),
    },
    "simmim": {**_OPTIMISER, "mask_ratio": Range(low=0.3, high=0.8)},
}
#: Beside them where training starts from weights.
_FINETUNING: Space = {"layer_decay": Range(low=0.5, high=1.0)}


def default_space(recipe: Recipe) -> dict[str, Range | Choice]:
    """The usual space of a recipe's task, widened to hold the recipe's own values; learning rates by a factor of 30."""
    space = dict(_SPACES[recipe.task])
    if recipe.checkpoint or recipe.pretrained:
        space |= _FINETUNING
    rates = space["lr"]
    assert isinstance(rates, Range)
    usual = recipe.lr or rates.low
    space["lr"] = rates.replace(low=min(rates.low, usual), high=max(rates.high, usual * 30))
    return widened(space, recipe)


def read_space(path: str | Path, recipe: Recipe) -> dict[str, Range | Choice]:
    """A space from a YAML file: ``lr: {low: 1e-4, high: 1e-2, log: true}``, ``ema: [null, 0.99]``.

    Raises:
        OptionError: For a file that cannot be read, an unknown setting, or an impossible range, in one line.
    """
    try:
        require_file(path)
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else error
        raise OptionError(f"{path}: cannot read the space: {reason}") from None
    if not isinstance(values, dict) or not values:
        raise OptionError(f"{path}: a space is a mapping: lr: {{low: 1e-4, high: 1e-2, log: true}}")
    space: dict[str, Range | Choice] = {}
    for name, value in values.items():
        try:
            space[str(name)] = _dimension(value)
            current_value(recipe, str(name))
        except OptionError as error:
            raise OptionError(f"{path}: {name}: {error}") from None
    return widened(space, recipe)


def _dimension(value: Any) -> Range | Choice:
    if isinstance(value, list):
        plain = all(isinstance(one, Value) for one in value)
        if len(value) < 2 or not plain:
            raise OptionError(f"choices are a list of two values or more, got {reprlib.repr(value)}")
        return Choice(tuple(value))
    if not isinstance(value, dict):
        raise OptionError(f"give a list of choices, or low and high, got {reprlib.repr(value)}")
    limits = Range.of(value)
    if not limits.low < limits.high or (limits.log and limits.low <= 0):
        raise OptionError(
            f"low must be below high{', and above 0' if limits.log else ''}, got {limits.low:g} to {limits.high:g}"
        )
    return limits


def widened(space: Space, recipe: Recipe) -> dict[str, Range | Choice]:
    """The space, as much wider as it takes to hold the recipe's own values."""
    result: dict[str, Range | Choice] = {}
    for name, dimension in space.items():
        value = current_value(recipe, name)
        if isinstance(dimension, Choice):
            result[name] = dimension if value in dimension.values else Choice((value, *dimension.values))
        elif isinstance(value, (int, float)) and not (dimension.log and value <= 0):
            result[name] = dimension.replace(low=min(dimension.low, value), high=max(dimension.high, value))
        elif isinstance(value, (int, float)):  # 0, which has no logarithm
            result[name] = dimension.replace(low=float(value), log=False)
        else:
            raise OptionError(
                f"{name} is {reprlib.repr(value)} in the recipe, which is no number; set it, or give a list of choices"
            )
    return result


def current_value(recipe: Recipe, name: str) -> Any:
    """The value of a setting in a recipe.

    Raises:
        OptionError: If there is no such setting.
    """
    first, _, part = name.partition(".")
    override(recipe.as_dict(), {first: None})  # its own error for an unknown name
    values = recipe.as_dict()
    value = values[first] if first in values else values["options"][first]
    if first == "model_options":
        return value.get(part, 0.0)
    if part:
        if not isinstance(value, list) or not part.isdigit() or int(part) >= len(value):
            raise OptionError(f"{first} has no part {part!r}")
        return value[int(part)]
    return 1.0 if value is None and first == "layer_decay" else value


def applied(recipe: Recipe, parameters: Mapping[str, Any]) -> Recipe:
    """The recipe with some settings changed, whose names may be those of parts."""
    overrides: dict[str, Any] = {}
    values = recipe.as_dict()
    for name, value in parameters.items():
        first, _, part = name.partition(".")
        if not part:
            overrides[first] = value
            continue
        before = overrides.get(first, values[first] if first in values else values["options"][first])
        if isinstance(before, dict):
            overrides[first] = {**before, part: value}
        else:
            overrides[first] = [value if i == int(part) else old for i, old in enumerate(before)]
    return Recipe.of(override(values, overrides))
