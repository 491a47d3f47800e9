"""Accuracy of a classifier: top-1, top-5, loss, per class, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vmamba.errors import DataError
from vmamba.tables import write_table


class Accuracy:
    """Sums over batches and processes.

    Args:
        num_classes: Classes.
        device: Of the logits.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros(
            (), dtype=torch.float32 if str(device).startswith("mps") else torch.float64, device=device
        )

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, classes), labels (B,) int64."""
        logits = logits.float()
        ranked = logits.topk(min(5, self.num_classes), dim=1).indices
        cells = labels * self.num_classes + ranked[:, 0]
        self.confusion += torch.bincount(cells, minlength=self.num_classes**2).view_as(self.confusion)
        self.top5 += (ranked == labels[:, None]).any(1).sum()
        self.loss += F.cross_entropy(logits, labels, reduction="sum")

    def sum_over_processes(self) -> None:
        if dist.is_initialized():
            for total in (self.confusion, self.top5, self.loss):
                dist.all_reduce(total)

    def results(self) -> dict[str, float]:
        """``top1`` and ``top5`` in per cent, ``loss`` (cross-entropy without smoothing), ``images``."""
        images = int(self.confusion.sum())
        if not images:
            raise DataError("there was no image to evaluate")
        top1 = int(self.confusion.diagonal().sum())
        return {
            "top1": 100 * top1 / images,
            "top5": 100 * int(self.top5) / images,
            "loss": float(self.loss) / images,
            "images": images,
        }

    def write(self, folder: Path, names: Sequence[str]) -> list[Path]:
        """Write ``per_class.csv`` and ``confusion.csv`` (rows: the truth); the paths."""
        confusion = self.confusion.cpu()
        hits, truth, guessed = confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist()
        per_class = [
            (name, images, _percent(hit, images), _percent(hit, predicted))
            for name, hit, images, predicted in zip(names, hits, truth, guessed, strict=True)
        ]
        matrix = [[name, *row] for name, row in zip(names, confusion.tolist(), strict=True)]
        columns = ("class", "images", "recall_percent", "precision_percent")
        return [
            write_table(folder / "per_class.csv", columns, per_class),
            write_table(folder / "confusion.csv", ["truth \\ prediction", *names], matrix),
        ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""
