"""Checkpoints of a run: whole or not there, and enough to continue bit for bit.

A file holds the weights, their moving average, the optimiser, the gradient scaler and the position. Nothing else has a
state: learning rates are a function of the step, and every random number is one of (seed, step, process) or (seed,
epoch, image). Weights of sharded models are gathered, so that a run may continue with another number of processes, or
with ``ddp`` instead of ``fsdp``.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
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

FORMAT = 1
_NAME = re.compile(r"step_(\d+)\.pt")


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: Optimiser steps done.
        epoch: Epochs completed.
        step_in_epoch: Optimiser steps done in the epoch after those.
        best: Best headline metric so far.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best: float | None = None


@dataclass
class Learner:
    """What has a state: model (not wrapped), moving average, optimiser, scaler of the loss."""

    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None

    def state(self) -> dict[str, Any]:
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
            except (RuntimeError, KeyError, ValueError, TypeError) as error:
                raise CheckpointError(f"the checkpoint does not fit this run: {str(error).splitlines()[0]}") from None
        self.scaler.load_state_dict(processes.from_first(state.get("scaler")) or {})


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own use of what it has deprecated
        yield


# --------------------------------------------------------------------------------------------------------------------
# Files


class Checkpoints:
    """The folder of a run's checkpoints: ``step_00001234.pt``, the newest few, and ``best.pt``.

    Args:
        folder: Where they are.
        keep: How many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[Path]:
        """All but the best, oldest first."""
        found = self.folder.glob("step_*.pt") if self.folder.is_dir() else iter(())
        return sorted((p for p in found if _NAME.fullmatch(p.name)), key=lambda p: int(p.stem.split("_")[1]))

    def save(self, state: Mapping[str, Any], position: Position, recipe: Mapping[str, Any], best: bool = False) -> Path:
        """Write a checkpoint, then remove the oldest beyond `keep`; the path.

        Raises:
            CheckpointError: If it cannot be written; the earlier ones are untouched.
        """
        path = self.folder / f"step_{position.step:08d}.pt"
        content = {"format": FORMAT, "recipe": dict(recipe), "position": asdict(position), **state}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, content)
            if best:
                _link(path, self.folder / "best.pt")
        except (OSError, RuntimeError) as error:  # torch reports a failed write as either
            earlier = [p for p in self.steps() if p != path]
            kept = f"{earlier[-1]} is untouched" if earlier else "there is no earlier checkpoint"
            reason = getattr(error, "strerror", None) or _cause(error)
            raise CheckpointError(
                f"{path}: cannot save the checkpoint: {reason}; {kept}: make room and continue with --resume auto"
            ) from None
        for old in self.steps()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """The newest checkpoint that can be read, its content, and why newer ones could not; None without any."""
        problems: list[str] = []
        for path in reversed(self.steps()):
            try:
                return path, read(path), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(problems[0])
        return None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of a run.

    Raises:
        CheckpointError: If it cannot be read or is something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise CheckpointError(f"{path}: cannot read the checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not {"format", "recipe", "position", "model"} <= content.keys():
        raise CheckpointError(f"{path}: not the state of a training run; give weights as --checkpoint instead")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path}: written by another version of vmamba (format {content['format']})")
    return content


def _write(path: Path, content: object) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o666 & ~_umask())
    os.replace(file.name, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, replacing what had it."""
    temporary = name.with_name(f".{name.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(path.read_bytes())
    os.replace(temporary, name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cause(error: BaseException) -> str:
    cause = error.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(error).splitlines()[0]
