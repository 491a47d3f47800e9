"""The detections of one image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vmamba.tasks.detection.regions import paste_masks


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels of the network's input, or of the image after `rescale`.
        scores: float32 (N,).
        labels: int64 (N,), indices into the classes.
        masks: float32 (N, 28, 28), probabilities inside the box.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def to(self, device: torch.device | str) -> Detections:
        """The same on a device."""
        return Detections(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        keep = self.scores >= score
        return Detections(*(getattr(self, field.name)[keep] for field in dataclasses.fields(self)))

    def rescale(self, scale: Sequence[float]) -> Detections:
        """Boxes in pixels of the original image.

        Args:
            scale: Height and width of the network's input as multiples of the image's.
        """
        boxes = self.boxes / self.boxes.new_tensor([scale[1], scale[0], scale[1], scale[0]])
        return dataclasses.replace(self, boxes=boxes)

    def image_masks(self, size: Sequence[int]) -> Iterator[Tensor]:
        """Masks, bool (H, W), laid over an image of this height and width; one at a time, for images may be large."""
        for i in range(len(self.masks)):
            yield paste_masks(self.masks[i : i + 1], self.boxes[i : i + 1], size)[0]

    def in_image(self, size: Sequence[int], scale: Sequence[float] = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) and masks, bool (N, H, W), in the pixels of the original image.

        Args:
            size: Its height and width.
            scale: See `rescale`.
        """
        boxes = self.rescale(scale).boxes
        return boxes, paste_masks(self.masks, boxes, size)
