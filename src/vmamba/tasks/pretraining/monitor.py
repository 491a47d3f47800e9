"""Watch for collapse: the rank of the features, and a nearest-neighbour classifier on them."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vmamba.data.image_tree import UNLABELLED

#: Neighbours that vote, and the temperature of their votes (Wu et al., arXiv:1805.01978).
NEIGHBOURS, TEMPERATURE = 10, 0.07
_ROWS = 1024


class FeatureMonitor:
    """Features of validation images over batches and processes."""

    def __init__(self) -> None:
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Keep a batch: features (B, C), labels (B,)."""
        self._features.append(features.float().cpu())
        self._labels.append(labels.cpu())

    def results(self) -> dict[str, float]:
        """``effective_rank`` and, where there are labels, ``knn`` in per cent; a rendezvous of the processes."""
        features, labels = torch.cat(self._features), torch.cat(self._labels)
        if dist.is_initialized():
            parts: list[tuple[Tensor, Tensor]] = [(features, labels)] * dist.get_world_size()
            dist.all_gather_object(parts, (features, labels))
            features, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        known = labels != UNLABELLED
        with torch.autocast("cpu", enabled=False):  # else similarities in bfloat16 decide who is near
            results = {"effective_rank": effective_rank(features)}
            if known.sum() > 1:
                results["knn"] = 100 * nearest_neighbour_accuracy(features[known], labels[known])
        return results


def effective_rank(features: Tensor) -> float:
    """Number of directions that features (N, C) are spread over, from 1 to C (Roy and Vetterli, 2007).

    The exponential of the entropy of the singular values of the centred features, as fractions of their sum. Collapsed
    features have 1.
    """
    values = torch.linalg.svdvals(features.double() - features.double().mean(0))
    total = values.sum()
    if not total > 0:
        return 1.0
    fractions = values / total
    return float(torch.exp(-torch.special.xlogy(fractions, fractions).sum()))


def nearest_neighbour_accuracy(features: Tensor, labels: Tensor) -> float:
    """Fraction of images (N, C) whose nearest others, by the cosine, vote for their class (N,)."""
    directions = F.normalize(features, dim=1)
    classes = int(labels.max()) + 1
    right = 0
    for start in range(0, len(labels), _ROWS):
        rows = directions[start : start + _ROWS]
        similarity = rows @ directions.T
        similarity[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -torch.inf
        nearest, indices = similarity.topk(min(NEIGHBOURS, len(labels) - 1), dim=1)
        votes = torch.zeros(len(rows), classes, dtype=rows.dtype).scatter_add_(
            1, labels[indices], (nearest / TEMPERATURE).exp()
        )
        right += int((votes.argmax(1) == labels[start : start + _ROWS]).sum())
    return right / len(labels)
