"""Pictures of features: their principal components as colours, the nearest neighbours, and the probes' scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmamba.model.backbone import VMamba
from vmamba.plots import COLOURS, figure, remove_frame
from vmamba.studies.features import PIXELS, TRAINED, UNTRAINED, Features
from vmamba.tables import Row

#: Validation images that are shown, and their neighbours among the training images.
SHOWN, NEIGHBOURS = 6, 5
#: Height and width below which a map of features says nothing.
_SMALLEST_MAP = 8


def component_maps(model: VMamba, images: Tensor) -> NDArray[np.float64]:
    """The first three principal components of a stage's tokens, over all images: (N, H', W', 3) in [0, 1].

    The stage is the last one whose maps have at least 8×8 tokens, or the first.

    Args:
        model: In evaluation mode.
        images: (N, 3, H, W).
    """
    with torch.inference_mode():
        maps = model.forward_intermediates(images, intermediates_only=True, output_fmt="NHWC")
    assert isinstance(maps, list)
    chosen = next((m for m in reversed(maps) if min(m.shape[1:3]) >= _SMALLEST_MAP), maps[0])
    tokens = chosen.double().cpu().flatten(0, 2)
    tokens = tokens - tokens.mean(0)
    _, _, components = torch.linalg.svd(tokens, full_matrices=False)
    values = tokens @ components[:3].T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    scaled = ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return scaled.view(*chosen.shape[:3], -1).numpy()


def nearest(train: NDArray[np.float32], queries: NDArray[np.float32], count: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Indices (Q, count) of the rows of `train` whose cosine with each query is largest, nearest first."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, train))
    return np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :count]


def draw_features(
    path: Path,
    models: dict[str, VMamba],
    images: Tensor,
    pictures: Sequence[NDArray[np.uint8]],
    labels: Sequence[str],
    neighbours: Sequence[Sequence[tuple[NDArray[np.uint8], str]]],
) -> None:
    """Draw images, the principal components of their features by each model, and their nearest neighbours.

    Args:
        path: The picture.
        models: Kind → model.
        images: As the models see them, (N, 3, H, W).
        pictures: The same for people, (H, W, 3).
        labels: Names of their classes.
        neighbours: Of each image, the pictures and class names.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    maps = {kind: component_maps(model, images) for kind, model in models.items()}
    columns = 1 + len(maps) + max(map(len, neighbours))
    with figure(path, size=(1.5 * columns, 1.7 * len(pictures)), extra="train", dpi=110) as drawing:
        axes = drawing.subplots(len(pictures), columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for i, row in enumerate(axes):
            row[0].imshow(pictures[i])
            row[0].set_title(labels[i], fontsize=9)
            for axis, (kind, values) in zip(row[1:], maps.items(), strict=False):
                axis.imshow(values[i])
                axis.set_title(kind if i == 0 else "", fontsize=9)
            for axis, (picture, label) in zip(row[1 + len(maps) :], neighbours[i], strict=False):
                axis.imshow(picture)
                axis.set_title(label, fontsize=9, color=COLOURS[2] if label == labels[i] else COLOURS[1])


def draw_scores(path: Path, rows: Sequence[Row]) -> None:
    """Draw the accuracy of each probe over the labels per class, with its spread.

    Args:
        path: The picture.
        rows: Of `vmamba.studies.probing.summary`.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    counts = list(dict.fromkeys(str(row["labels_per_class"]) for row in rows))
    probes = list(dict.fromkeys(str(row["probe"]) for row in rows))
    with figure(path, size=(4.2 * len(probes), 3.6), extra="train", dpi=130) as drawing:
        for axis, name in zip(drawing.subplots(1, len(probes), squeeze=False)[0], probes, strict=True):
            for kind, colour in zip((TRAINED, UNTRAINED, PIXELS), COLOURS, strict=False):
                mine = [row for row in rows if row["probe"] == name and row["features"] == kind]
                at = [counts.index(str(row["labels_per_class"])) for row in mine]
                middle, low, high = (
                    np.array([float(str(row[column])) for row in mine]) for column in ("accuracy", "lowest", "highest")
                )
                axis.errorbar(at, middle, (middle - low, high - middle), fmt="o-", capsize=3, color=colour, label=kind)
            axis.set_xticks(range(len(counts)), counts)
            axis.set(xlabel="labels per class", ylabel="accuracy, %", title=f"{name} probe")
            axis.legend(frameon=False)
            axis.grid(alpha=0.25)
            remove_frame(axis)


def shown(features: Features, count: int = SHOWN) -> list[int]:
    """Indices of images to show: of as many classes as possible, evenly spread over the split."""
    classes = np.unique(features.labels)
    chosen = classes[np.linspace(0, len(classes) - 1, min(count, len(classes))).astype(int)]
    return [int(np.flatnonzero(features.labels == label)[0]) for label in chosen]
