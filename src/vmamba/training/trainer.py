"""One process's part in training: model, optimiser and batches. It computes, and writes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from vmamba.data.seeding import seed_all
from vmamba.errors import DataError
from vmamba.tasks.protocol import Batch, Loader, Task
from vmamba.training.distributed import Processes, distribute, shard, without_sync
from vmamba.training.evaluation import autocast
from vmamba.training.optimizer import autocast_dtype, build_average, build_optimizer, build_schedule
from vmamba.training.recipe import Recipe
from vmamba.training.state import Position, TrainState


class Candidate(NamedTuple):
    """Weights to validate: a prefix for the names of their results, a name for people, the model."""

    prefix: str
    name: str
    model: nn.Module


class NonFinite(NamedTuple):
    """A step whose loss or gradient is not finite, with what it takes to compute it again.

    Attributes:
        batches: Of this process.
        seeds: Of its random numbers.
        values: Loss and norm of the gradient.
        here: It happened in this process.
    """

    batches: Sequence[Batch]
    seeds: Sequence[int]
    values: dict[str, float]
    here: bool


class Trainer:
    """Training as a sequence of steps.

    Attributes:
        model: As the task built it, on its device; not wrapped.
        state: What a checkpoint holds.
        position: Steps and epochs done.

    Args:
        task: What is learnt.
        recipe: How.
        processes: Who takes part.

    Raises:
        OptionError: For what is wrong with the recipe.
        DataError: If there is too little data for a step.
    """

    def __init__(self, task: Task, recipe: Recipe, processes: Processes) -> None:
        self.task, self.recipe, self.processes = task, recipe, processes
        self.position = Position()
        self.train_loader: Loader = task.train_loader()
        self.val_loader: Loader = task.val_loader()
        self.steps_per_epoch = len(self.train_loader) // recipe.grad_accum_steps
        if not self.steps_per_epoch:
            raise DataError(f"the training images are fewer than one batch of {recipe.batch_size}; use a smaller one")
        seed_all(recipe.seed)
        model = task.build_model()
        if recipe.grad_checkpointing:
            cast(Any, model).set_grad_checkpointing()
        self._whole = deepcopy(model) if recipe.distribution == "fsdp" else None  # takes gathered weights
        self.model = model.to(processes.device)
        self.dtype = autocast_dtype(recipe.precision, processes.device)
        ema = build_average(self.model, recipe)
        self.wrapped = distribute(self.model, recipe.distribution, processes)
        if ema is not None and recipe.distribution == "fsdp":
            shard(ema.module)
        optimizer = build_optimizer(self.model, recipe)
        self.schedule = build_schedule(optimizer, recipe, self.steps_per_epoch)
        scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)
        self.state = TrainState(self.model, optimizer, scaler, ema)

    def restore(self, position: Position, content: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's position and content; only the first process needs to have the latter.

        Raises:
            CheckpointError: If the content is that of another model or optimiser.
        """
        self.position = position
        self.state.load(content, self.processes)

    def start(self) -> None:
        """Compile where the recipe says so, and switch to training."""
        if self.recipe.compile:
            self.model.compile()
        self.model.train()

    @property
    def lr(self) -> float:
        """The largest learning rate of the last step."""
        return max(group["lr"] for group in self.state.optimizer.param_groups)

    def epoch(self) -> Iterator[list[Batch]]:
        """The rest of the epoch: the batches of each step, on their device."""
        passes = self.recipe.grad_accum_steps
        batches = self.train_loader.batches(self.position.epoch, self.position.step_in_epoch * passes)
        for _ in range(self.position.step_in_epoch, self.steps_per_epoch):
            yield [next(batches).to(self.processes.device) for _ in range(passes)]

    def step(
        self, batches: Sequence[Batch], flag: Callable[[], bool] = bool
    ) -> tuple[dict[str, float], bool] | NonFinite:
        """Take one step of the optimiser; all processes do so together.

        Args:
            batches: Of this process; their gradients are accumulated.
            flag: Asked at the end of the step: has this process something to tell the others?

        Returns:
            The mean of each loss over batches and processes with ``grad_norm``, and whether any process raised its
            flag; `NonFinite` where nothing was learnt.
        """
        state, processes = self.state, self.processes
        seeds = (self.recipe.seed, self.position.step, processes.rank)
        seed_all(*seeds)
        self.schedule.step_update(self.position.step)
        losses = self._backward(batches)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_grad or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        *values, grad_norm = torch.stack([*losses.values(), norm.float()]).tolist()  # the one wait for the device
        # float16 meets infinite gradients while its scale settles; the scaler skips those steps itself.
        bad = not all(map(math.isfinite, values)) or not (math.isfinite(grad_norm) or state.scaler.is_enabled())
        *sums, flags, bads = processes.sum([*values, flag(), bad])
        if bads:
            return NonFinite(batches, seeds, {"loss": values[0], "gradient_norm": grad_norm}, bad)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.update(self.model, step=self.position.step)
        self.position.step += 1
        self.position.step_in_epoch += 1
        means = {name: value / processes.size for name, value in zip(losses, sums, strict=True)}
        return {**means, "grad_norm": grad_norm}, flags > 0

    def _backward(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Accumulate gradients; the mean of each loss over the batches."""
        means: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with without_sync(self.wrapped, accumulating=i < len(batches) - 1):
                with autocast(self.processes.device, self.dtype):
                    losses = self.task.loss(self.wrapped, batch)
                self.state.scaler.scale(losses["loss"] / len(batches)).backward()
            for name, value in losses.items():
                means[name] = means.get(name, 0) + value.detach().float() / len(batches)
        return means

    def candidates(self) -> Iterator[Candidate]:
        """The weights and, where there is one, their moving average; whole, where they are sharded."""
        models = [Candidate("", "weights", self.model)]
        if self.state.ema is not None:
            models.append(Candidate("ema_", "average of weights", self.state.ema.module))
        for candidate in models:
            if self._whole is None:
                yield candidate
                continue
            weights = get_model_state_dict(candidate.model, options=StateDictOptions(full_state_dict=True))
            self._whole.to(self.processes.device).load_state_dict(weights)
            yield candidate._replace(model=self._whole)
