"""Validation batches through a model: the loop that training and ``vmamba evaluate`` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vmamba.progress import progress_bar
from vmamba.tasks.protocol import Batch, Loader, Task
from vmamba.training.distributed import Processes


def evaluate(
    task: Task,
    model: nn.Module,
    loader: Loader,
    processes: Processes,
    *,
    dtype: torch.dtype | None = None,
    output: Path | None = None,
    description: str = "validating",
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`Task.evaluate` with progress; adds ``images_per_second`` (over all processes, loading included).

    Args:
        task: The task.
        model: Not wrapped, on its device; its mode (training or not) is left as it was.
        loader: Of the validation split.
        processes: Who takes part; all call this together.
        dtype: Of matrix products, None for float32.
        output: See `Task.evaluate`.
        description: Of the progress bar.
        on_batch: Called before each batch; what it raises ends the evaluation.
    """
    training = model.training
    model.eval()
    seen = 0

    def batches() -> Iterator[Batch]:
        nonlocal seen
        with progress_bar("batches") if processes.first else nullcontext() as bar:
            loaded = loader.batches(0)
            for batch in bar.track(loaded, total=len(loader), description=description) if bar else loaded:
                on_batch()
                seen += batch.size
                yield batch.to(processes.device)

    start = time.perf_counter()
    try:
        with torch.no_grad(), autocast(processes.device, dtype):
            results = task.evaluate(model, batches(), output)
    finally:
        model.train(training)
    (images,) = processes.sum([seen])
    return {**results, "images_per_second": images / (time.perf_counter() - start)}


def autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    """Matrix products in `dtype`; nothing for None."""
    return torch.autocast(device.type, dtype) if dtype is not None else nullcontext()
