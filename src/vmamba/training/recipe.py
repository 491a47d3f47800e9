"""`Recipe`: everything that decides what a run computes, in one YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from vmamba.checkpoints.reading import Weights
from vmamba.tasks import task_class

#: The recipes of ``vmamba train`` where none is named: with weights to start from, and without.
FINETUNE, SCRATCH = "finetune", "scratch"


@dataclass(frozen=True)
class Recipe:
    """A run. Learning rates are for a batch of `lr_batch` images and scaled linearly to `batch_size`.

    Attributes:
        task: What is learnt, see `vmamba.tasks.TASKS`.
        data: Where the data lie.
        model: Name of the backbone, see ``vmamba models``.
        model_options: Overrides of its configuration: ``{drop_path_rate: 0.2}``.
        checkpoint: Weights to start from.
        weights: Which of the checkpoint's weights: ``"model"``, ``"model_ema"``, or ``"auto"``.
        pretrained: Start from the authors' ImageNet-1K weights of the model.
        options: Those of the task.
        epochs: Passes over the training images.
        batch_size: Images per optimiser step, over all processes and accumulated passes.
        accumulate: Forward and backward passes per optimiser step.
        optimizer: timm's name of an optimiser.
        betas: Its momenta, where it has them.
        eps: Its epsilon.
        weight_decay: Not of norms, biases and state parameters.
        lr: Peak learning rate.
        warmup_lr: Learning rate at the start.
        min_lr: Learning rate at the end.
        lr_batch: Batch size that the three are for; None to take them as they are.
        warmup_epochs: Epochs of linear warm-up.
        schedule: timm's name of a schedule.
        milestones: Epochs at which the schedule ``multistep`` lowers the rate, by a factor of ten.
        layer_decay: Factor on the learning rate from each layer to the one before it; None for none.
        clip_grad: Largest norm of the gradient; None for any.
        ema: Decay of the moving average of the weights; None for none.
        ema_warmup: Start the average with a smaller decay, for short runs.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: bfloat16 on a GPU, else float32.
        grad_checkpointing: Recompute blocks in the backward pass: less memory, more time.
        compile: Compile the model.
        distribution: How processes share the work: ``"ddp"``, or ``"fsdp"`` (FSDP2: parameters are sharded).
        workers: Loader processes per training process.
        seed: Of everything random.
        strict: Stop at an unreadable image instead of leaving it out.
        validate_every: Epochs between validations; the first and the last epoch are always validated.
        save_every: Optimiser steps between checkpoints; None for one per epoch.
        keep: Checkpoints that are kept, besides the best.
        log_every: Optimiser steps between rows of the log.
    """

    task: str = "classification"
    data: str | None = None
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    weights: Weights = "auto"
    pretrained: bool = False
    options: Any = None
    epochs: int = 30
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    lr: float = 1e-3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    lr_batch: int | None = None
    warmup_epochs: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    layer_decay: float | None = None
    clip_grad: float | None = 5.0
    ema: float | None = None
    ema_warmup: bool = False
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    grad_checkpointing: bool = False
    compile: bool = False
    distribution: Literal["ddp", "fsdp"] = "ddp"
    workers: int = 2
    seed: int = 0
    strict: bool = False
    validate_every: int = 1
    save_every: int | None = None
    keep: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.pretrained and self.checkpoint:
            raise ValueError("give either pretrained or a checkpoint, not both")

    @property
    def lr_scale(self) -> float:
        """What the learning rates are multiplied with."""
        return self.batch_size / self.lr_batch if self.lr_batch else 1.0

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values; `recipe_from` reads them back."""
        plain: dict[str, Any] = yaml.safe_load(self.to_yaml())
        return plain

    def to_yaml(self) -> str:
        """As YAML, in the order of the fields."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False, allow_unicode=True)


_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "lr_batch": 1,
    "lr": 0,
    "warmup_lr": 0,
    "min_lr": 0,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "layer_decay": 0,
    "ema": 0,
    "workers": 0,
    "seed": 0,
    "validate_every": 1,
    "save_every": 1,
    "keep": 1,
    "log_every": 1,
}

#: Fields that a resumed run may change: they decide neither what is computed nor how its state looks.
FREE_TO_CHANGE = {
    "data", "accumulate", "grad_checkpointing", "compile", "distribution", "workers", "strict",
    "validate_every", "save_every", "keep", "log_every",
}  # fmt: skip


def list_recipes() -> list[str]:
    """Names of the recipes in the package."""
    root = Path(str(resources.files("vmamba.recipes")))
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe of the package by name, or a YAML file by path, with some values replaced.

    Args:
        name: One of `list_recipes`, or a path ending in ``.yaml``.
        overrides: Field of the recipe or of its task's options → value.

    Raises:
        ValueError: For an unknown recipe, field or value, in one line with the nearest name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        path = Path(str(resources.files("vmamba.recipes"))) / f"{name}.yaml"
        if not path.is_file():
            raise ValueError(
                f"unknown recipe {name!r}; {_nearest(name, list_recipes())}, or give a path ending in .yaml"
            )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the recipe: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of fields, this is {type(values).__name__}")
    try:
        recipe = recipe_from(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return recipe_from(values, overrides) if overrides else recipe


def recipe_from(values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe of plain values, as YAML has them.

    Args:
        values: Field → value; ``options`` is a mapping of the task's.
        overrides: Replaces some of them; names may be fields or the task's options.

    Raises:
        ValueError: For unknown names and impossible values.
    """
    values = dict(values)
    options = values.get("options") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"options must be a mapping, got {options!r}")
    options = dict(options)
    task = str((overrides or {}).get("task", values.get("task", "classification")))
    options_class = task_class(task).Options
    fields, task_fields = _names(Recipe), _names(options_class)
    for name, value in (overrides or {}).items():
        if name in task_fields:
            options[name] = value
        elif name in fields and name != "options":
            values[name] = value
        else:
            raise ValueError(f"unknown field {name!r}; {_nearest(name, sorted(fields | task_fields))}")
    values["options"] = None
    recipe = _build(Recipe, values)
    return dataclasses.replace(recipe, options=_build(options_class, options))


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """``["epochs=3", "crop_scale=[0.5, 1]"]`` → values, each read as YAML.

    Raises:
        ValueError: If one is not NAME=VALUE.
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set {setting}: write NAME=VALUE, for example --set epochs=3")
        try:
            values[name.strip().replace("-", "_")] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--set {setting}: the value is not YAML") from None
    return values


def differences(saved: Mapping[str, Any], now: Recipe) -> list[str]:
    """Where a run's saved recipe differs from another in what a resumed run must not change, for a person."""
    before, after = _flat(saved), _flat(now.as_dict())
    names = [n for n in {**before, **after} if n.split(".")[0] not in FREE_TO_CHANGE and before.get(n) != after.get(n)]
    return [f"{name}: {before.get(name)} there, {after.get(name)} now" for name in names]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    options = {f"options.{name}": value for name, value in (values.get("options") or {}).items()}
    return {name: value for name, value in values.items() if name != "options"} | options


def _names(cls: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"do you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"


def _build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """A dataclass of plain values, each brought to the type of its field."""
    hints = get_type_hints(cls)
    names = _names(cls)
    for name in values:
        if name not in names:
            raise ValueError(f"unknown field {name!r}; {_nearest(str(name), sorted(names))}")
    return cls(**{name: _convert(name, value, hints[name]) for name, value in values.items()})


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as the annotation `kind` has it."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        kind = next(a for a in get_args(kind) if a is not type(None))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(_convert(name, v, k) for v, k in zip(value, kinds, strict=True))
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-3 for text
        except ValueError:
            pass
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a folder named 2024
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{name} must be one of {', '.join(arguments)}, got {value!r}")
    if kind is Any or type(value) is (origin or kind):
        return value
    expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    raise ValueError(f"{name} must be {expected.get(origin or kind, f'a list of {len(arguments)}')}, got {value!r}")


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
