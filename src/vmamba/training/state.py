"""The state of a run: enough to continue it bit for bit.

It holds the weights, their moving average, the optimiser, the gradient scaler and the position. Nothing else has a
state: learning rates are a function of the step, and every random number is one of (seed, step, process) or (seed,
epoch, image). Weights of sharded models are gathered, so that a run may continue with another number of processes, or
with ``ddp`` instead of ``fsdp``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from vmamba.errors import CheckpointError
from vmamba.training.distributed import Processes


@dataclass
class Position:
    """Progress of a run.

    Attributes:
        step: Optimiser steps done.
        epoch: Epochs completed.
        step_in_epoch: Optimiser steps done in the epoch after those.
        best: Best headline metric so far.
        to_validate: The last completed epoch has not been validated yet.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best: float | None = None
    to_validate: bool = False


@dataclass
class TrainState:
    """The parts of a run with a state: model (not wrapped), moving average, optimiser, scaler of the loss."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None

    def whole(self) -> dict[str, Any]:
        """Everything, whole, on the CPU; empty parts in all processes but the first where there are several."""
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        with _quiet():
            return {
                "model": get_model_state_dict(self.model, options=whole),
                "model_ema": get_model_state_dict(self.ema.module, options=whole) if self.ema else None,
                "optimizer": get_optimizer_state_dict(self.model, self.optimizer, options=whole),
                "scaler": self.scaler.state_dict(),
            }

    def load(self, state: Mapping[str, Any], processes: Processes) -> None:
        """Take `state` over; only the first process needs to have it.

        Raises:
            CheckpointError: If it is that of another model or optimiser.
        """
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=processes.size > 1)
        with _quiet():
            try:
                set_model_state_dict(self.model, state.get("model", {}), options=whole)
                if self.ema:
                    set_model_state_dict(self.ema.module, state.get("model_ema", {}), options=whole)
                set_optimizer_state_dict(self.model, self.optimizer, state.get("optimizer", {}), options=whole)
                scaler: Any = state.get("scaler")
                self.scaler.load_state_dict(processes.broadcast(scaler) or {})
            except Exception as error:  # torch raises nearly anything for a state of another structure
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                where = state.get("path", "the checkpoint")
                raise CheckpointError(f"{where}: does not fit this run: {reason}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own use of what it has deprecated
        yield
