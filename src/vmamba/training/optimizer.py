"""Optimiser, schedule, moving average and precision, by timm, as a recipe says."""

from __future__ import annotations

import reprlib
import warnings
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from vmamba.errors import OptionError
from vmamba.training.recipe import Recipe

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": None}


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The optimiser, without weight decay for norms, biases and what the model excludes.

    Raises:
        OptionError: For an optimiser that timm does not have.
    """
    options: dict[str, Any] = {"eps": recipe.eps} if recipe.optimizer != "sgd" else {"momentum": recipe.betas[0]}
    if "adam" in recipe.optimizer or "lamb" in recipe.optimizer or "lion" in recipe.optimizer:
        options["betas"] = recipe.betas
    try:
        return create_optimizer_v2(
            model,
            recipe.optimizer,
            lr=recipe.lr * recipe.lr_scale,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay,
            **options,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise OptionError(f"optimizer {reprlib.repr(recipe.optimizer)}: {str(error).splitlines()[0]}") from None


def build_schedule(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> Scheduler:
    """Learning rates as a function of the number of steps done: linear warm-up, then the schedule.

    Raises:
        OptionError: For a warm-up as long as the run, or values that the schedule cannot take.
    """
    if recipe.warmup_epochs >= recipe.epochs:
        raise OptionError(
            f"warmup_epochs ({recipe.warmup_epochs:g}) must be fewer than epochs ({recipe.epochs}); "
            f"for a run this short: --set warmup_epochs={recipe.epochs / 10:g}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            schedule, _ = create_scheduler_v2(
                optimizer,
                recipe.schedule,
                num_epochs=recipe.epochs - recipe.warmup_epochs,
                decay_milestones=[epoch - recipe.warmup_epochs for epoch in recipe.milestones],
                decay_rate=1.0 if recipe.schedule == "poly" else 0.1,
                warmup_epochs=recipe.warmup_epochs,
                warmup_lr=recipe.warmup_lr * recipe.lr_scale,
                min_lr=recipe.min_lr * recipe.lr_scale,
                warmup_prefix=True,
                step_on_epochs=False,
                updates_per_epoch=steps_per_epoch,
            )
        except (AssertionError, ValueError) as error:
            raise OptionError(f"schedule {reprlib.repr(recipe.schedule)}: {str(error).splitlines()[0]}") from None
    return schedule


def build_average(model: nn.Module, recipe: Recipe) -> ModelEmaV3 | None:
    """The moving average of the weights, where the recipe wants one; made before the model is wrapped or sharded."""
    if recipe.ema is None:
        return None
    foreach = recipe.distribution != "fsdp"  # sharded tensors are averaged one by one
    return ModelEmaV3(model, decay=recipe.ema, use_warmup=recipe.ema_warmup, foreach=foreach)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products; None for float32."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return _DTYPES[precision]
