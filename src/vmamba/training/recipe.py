"""`Recipe`: everything that decides what a run computes."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, Strict, model_validator

from vmamba.errors import OptionError
from vmamba.settings import Integers, Settings, Text, nearest
from vmamba.tasks import task_class
from vmamba.tasks.protocol import TaskRecipe

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Field(ge=0, le=1e6)]
Momentum = Annotated[float, Field(ge=0, lt=1)]

#: Names of the first release → names of now.
RENAMED = {"accumulate": "grad_accum_steps"}

#: Fields that a resumed run may change: they decide neither what is computed nor how its state looks.
FREE_TO_CHANGE = {
    "data", "grad_accum_steps", "accumulate", "grad_checkpointing", "compile", "distribution", "workers", "strict",
    "max_pixels", "validate_every", "save_every", "keep", "log_every",
}  # fmt: skip


class Recipe(TaskRecipe):
    """A run. Learning rates are for a batch of `lr_batch` images and scaled linearly to `batch_size`.

    Attributes:
        data: Where the data lie.
        options: Those of the task.
        epochs: Passes over the training images.
        batch_size: Images per optimiser step, over all processes and accumulated passes.
        grad_accum_steps: Forward and backward passes per optimiser step.
        optimizer: timm's name of an optimiser.
        betas: Its momenta, where it has them.
        eps: Its epsilon.
        weight_decay: Not of norms, biases and state parameters.
        lr: Peak learning rate.
        warmup_lr: Learning rate at the start.
        min_lr: Learning rate at the end.
        lr_batch: Batch size that the three are for; None to take them as they are.
        warmup_epochs: Epochs of linear warm-up.
        schedule: timm's name of the schedule of the learning rate.
        milestones: Epochs at which the schedule ``multistep`` lowers the rate, by a factor of ten.
        layer_decay: Factor on the learning rate from each layer to the one before it; None for none.
        clip_grad: Largest norm of the gradient; None for any.
        ema: Decay of the moving average of the weights; None for none.
        ema_warmup: Start the average with a smaller decay, for short runs.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: bfloat16 on a GPU, else float32.
        grad_checkpointing: Recompute blocks in the backward pass: less memory, more time.
        compile: Compile the model.
        distribution: How processes divide the work: ``"ddp"``, or ``"fsdp"`` (FSDP2: parameters are sharded).
        validate_every: Epochs between validations; the first and the last epoch are always validated.
        save_every: Optimiser steps between checkpoints, besides those at the ends of epochs: of all that are validated,
            and of others half a minute after the last.
        keep: Checkpoints that are kept, besides the best.
        log_every: Optimiser steps between rows of the log.
    """

    data: Text | None = None
    options: Any = None
    epochs: Count = 30
    batch_size: Count = 64
    grad_accum_steps: Count = 1
    optimizer: str = "adamw"
    betas: Annotated[tuple[Momentum, Momentum], Strict(False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    weight_decay: Rate = 0.05
    lr: Rate = 1e-3
    warmup_lr: Rate = 1e-6
    min_lr: Rate = 1e-5
    lr_batch: Count | None = None
    warmup_epochs: Rate = 0.0
    schedule: Literal["cosine", "tanh", "step", "multistep", "poly"] = "cosine"
    milestones: Integers = ()
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    clip_grad: Annotated[float, Field(gt=0)] | None = 5.0
    ema: Momentum | None = None
    ema_warmup: bool = False
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    grad_checkpointing: bool = False
    compile: bool = False
    distribution: Literal["ddp", "fsdp"] = "ddp"
    validate_every: Count = 1
    save_every: Count | None = None
    keep: Count = 2
    log_every: Count = 10

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Rename what had another name; make `options` those of the task."""
        for old, new in RENAMED.items():
            if old in values:
                warnings.warn(f"the recipe's field {old!r} is now {new!r}", FutureWarning, stacklevel=2)
                values = {new if name == old else name: value for name, value in values.items()}
        task, options = values.get("task", "classification"), values.get("options")
        if not isinstance(task, str) or isinstance(options, Settings):
            return values
        if options is not None and not isinstance(options, Mapping):
            raise OptionError(f"options must be a mapping, got {reprlib.repr(options)}")
        return {**values, "options": task_class(task).Options.of(options or {})}

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.pretrained and self.checkpoint:
            raise OptionError("give either pretrained or a checkpoint, not both")
        return self

    @property
    def lr_scale(self) -> float:
        """The factor that the learning rates are multiplied with."""
        return self.batch_size / self.lr_batch if self.lr_batch else 1.0

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values; ``Recipe.of`` reads them back."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """As YAML, in the order of the fields."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)


def override(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe with some replaced, whose names may be fields or options of the task.

    Args:
        values: Field → value; ``options`` is a mapping.
        overrides: Replaces some of them.

    Raises:
        OptionError: For an unknown name; the nearest is suggested.
    """
    values = dict(values)
    before = values.get("task", "classification")
    task = overrides.get("task", before)
    options = dict(values.get("options") or {}) if task == before else {}
    options_of_task = task_class(task).Options.names()
    fields = [name for name in Recipe.names() if name != "options"]
    for name, value in overrides.items():
        if name in options_of_task:
            options[name] = value
        elif name in fields or name in RENAMED:
            values[name] = value
        else:
            raise OptionError(
                f"unknown field {reprlib.repr(name)}; {nearest(name, sorted([*fields, *options_of_task]))}"
            )
    return {**values, "options": options}


def differences(saved: Mapping[str, Any], now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Fields that decide what is computed → their values in a run's saved recipe and in another one."""
    defaults = _flat(Recipe.model_construct(options=type(now.options).model_construct()).model_dump(mode="json"))
    before, after = {**defaults, **_flat(saved)}, _flat(now.as_dict())
    names = [n for n in before if n.split(".")[0] not in FREE_TO_CHANGE and before[n] != after.get(n)]
    return {name: (before[name], after.get(name)) for name in names}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    options = values.get("options")
    nested = options if isinstance(options, dict) else {}
    return {name: value for name, value in values.items() if name != "options"} | {
        f"options.{name}": value for name, value in nested.items()
    }
