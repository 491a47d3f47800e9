"""Frozen features of labelled images: a model's, those of the same model untrained, and the pixels themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vmamba.data.seeding import seed_all
from vmamba.model.backbone import VMamba
from vmamba.progress import progress_bar
from vmamba.tasks.protocol import Loader

#: Names of the features, in the order in which they are compared.
TRAINED, UNTRAINED, PIXELS = "checkpoint", "untrained", "pixels"
#: Height and width that images are averaged to where their pixels are the features.
PIXEL_SIZE = 32


@dataclass(frozen=True)
class Features:
    """Features of a split.

    Attributes:
        values: Kind → float32 (N, C).
        labels: Classes, int64 (N,).
        files: Names of the images.
    """

    values: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    files: tuple[str, ...]


def untrained(model: VMamba, seed: int = 0) -> VMamba:
    """A fresh model of the same architecture, on the same device."""
    device = next(model.parameters()).device
    seed_all(seed)
    return VMamba(model.config).to(device).eval()


def pooled(model: VMamba, images: Tensor) -> Tensor:
    """Features before the classifier, (N, C)."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


@torch.inference_mode()
def extract(models: dict[str, VMamba], loader: Loader, description: str) -> Features:
    """Features of every image of a loader of evaluation, by each model and as pixels.

    Args:
        models: Kind → model, all on one device.
        loader: Yields `vmamba.tasks.classification.task.ImageBatch`.
        description: Of the progress bar.
    """
    device = next(nn.ModuleList(models.values()).parameters()).device
    values: dict[str, list[Tensor]] = {name: [] for name in (*models, PIXELS)}
    labels, files = [], list[str]()
    with progress_bar("batches") as bar:
        batches: Iterable[Any] = bar.track(loader.batches(0), total=len(loader), description=description)
        for batch in batches:
            images = batch.images.to(device)
            for name, model in models.items():
                values[name].append(pooled(model, images).float().cpu())
            values[PIXELS].append(F.adaptive_avg_pool2d(images, PIXEL_SIZE).flatten(1).cpu())
            labels.append(batch.labels)
            files += batch.files
    stacked = {name: torch.cat(parts).numpy() for name, parts in values.items()}
    return Features(stacked, torch.cat(labels).numpy(), tuple(files))
