"""Search for the module where a loss stopped being a number, by running the batch again and looking at every module."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.data.seeding import seed_all
from vmamba.errors import TrainingError
from vmamba.tasks.protocol import Batch, Task


class Diverged(TrainingError):
    """The loss or its gradient is NaN or infinite; the message is one line."""


def report(
    task: Task,
    model: nn.Module,
    batches: Sequence[Batch],
    seeds: Sequence[int],
    autocast: AbstractContextManager[Any],
    facts: Mapping[str, Any],
    path: Path,
) -> str:
    """Write what is known as JSON, and sum it up in a few words.

    Args:
        task: What is trained.
        model: Not wrapped, with the weights of the step, and its gradients where the backward pass came so far.
        batches: Of the step.
        seeds: Of its random numbers.
        autocast: As in training.
        facts: For the report: step, loss …
        path: The report.
    """
    gradients = _names(model.named_parameters(), lambda p: p.grad)
    weights = _names(model.named_parameters(), lambda p: p)
    module = None if weights else _first_module(task, model, batches, seeds, autocast)
    files = [file for batch in batches for file in batch.files]
    content = {
        **facts,
        "first_module_with_nonfinite_output": module,
        "parameters_nonfinite": weights,
        "gradients_nonfinite": gradients,
        "files": files,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON reads such escapes of names back
    if weights:
        return f"the weights themselves are not finite: {weights[0]}"
    if module:
        return f"first in the output of {module}"
    return f"first in the gradient, of {len(gradients)} parameters" if gradients else "in the loss itself"


def _names(named: Iterable[tuple[str, nn.Parameter]], value: Any) -> list[str]:
    return [name for name, p in named if value(p) is not None and not _finite(value(p))]


def _finite(value: object) -> bool:
    """True if every tensor in a nest of them is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, (list, tuple)) else True


def _first_module(
    task: Task,
    model: nn.Module,
    batches: Sequence[Batch],
    seeds: Sequence[int],
    autocast: AbstractContextManager[Any],
) -> str | None:
    first: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            if not first and not _finite(output):
                first.append(f"{name or 'the model'} ({type(module).__name__})" if _finite(inputs) else "the input")

        return module.register_forward_hook(look)

    hooks = [watch(name, module) for name, module in model.named_modules()]
    try:
        seed_all(*seeds)
        with torch.no_grad(), autocast:
            for batch in batches:
                task.loss(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return first[0] if first else None
