"""Mean intersection over union."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from vmamba.data.label_maps import IGNORE_INDEX
from vmamba.errors import DataError
from vmamba.tables import write_table


class MeanIoU:
    """Counts over images and processes: pixels of each class taken for each class.

    Args:
        num_classes: Classes.
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count an image: both integer (H, W); labels `IGNORE_INDEX` where there is none."""
        known = labels != IGNORE_INDEX
        classes = len(self.confusion)
        cells = labels[known].long() * classes + predicted.to(labels.device)[known].long()
        self.confusion += torch.bincount(cells, minlength=classes**2).view_as(self.confusion).cpu()

    def sum_over_processes(self) -> None:
        """Add up the counts of all processes."""
        if dist.is_initialized():
            everywhere = [torch.zeros_like(self.confusion) for _ in range(dist.get_world_size())]
            dist.all_gather_object(everywhere, self.confusion)
            self.confusion = torch.stack(everywhere).sum(dim=0)

    def per_class(self) -> tuple[Tensor, Tensor]:
        """IoU and recall of each class, float64; NaN for a class that neither occurs nor is predicted."""
        hits, truth, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        return hits.double() / (truth + predicted - hits), hits.double() / truth

    def results(self) -> dict[str, float]:
        """``miou``, ``macc`` (mean recall) and ``aacc`` (accuracy over pixels), per cent.

        Raises:
            DataError: If no pixel had a label.
        """
        if not self.confusion.any():
            raise DataError("there was no labelled pixel to evaluate on")
        iou, recall = self.per_class()
        accuracy = self.confusion.diagonal().sum().double() / self.confusion.sum()
        return {
            "miou": 100 * float(iou.nanmean()),
            "macc": 100 * float(recall.nanmean()),
            "aacc": 100 * float(accuracy),
        }

    def write(self, folder: Path, names: Sequence[str]) -> Path:
        """Write ``iou.csv``, one row per class; its path."""
        values = zip(names, *(v.tolist() for v in self.per_class()), strict=True)
        rows = [(name, *("" if math.isnan(v) else f"{100 * v:.2f}" for v in pair)) for name, *pair in values]
        return write_table(folder / "iou.csv", ("class", "iou_percent", "recall_percent"), rows)
