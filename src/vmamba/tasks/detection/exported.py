"""Detectors outside PyTorch: the function that is exported, and an exported file in the place of the detector."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ort import OnnxModel
from vmamba.tasks.detection.detections import Detections
from vmamba.tasks.detection.mask_rcnn import PAD_MULTIPLE, MaskRCNN, Size

#: Names of the results of `SingleImageDetector`.
RESULTS = ("boxes", "scores", "labels", "masks")


class SingleImageDetector(nn.Module):
    """A detector as a function of one image: (1, 3, H, W) of any size → boxes, scores, labels, masks of `Detections`.

    Args:
        detector: In evaluation mode.
    """

    def __init__(self, detector: MaskRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % PAD_MULTIPLE, 0, -height % PAD_MULTIPLE))
        (detections,) = self.detector(padded, [(height, width)])
        return [getattr(detections, name) for name in RESULTS]


class ExportedDetector(nn.Module):
    """An exported `SingleImageDetector`, called as a `MaskRCNN` is.

    Args:
        model: The file.
    """

    def __init__(self, model: OnnxModel) -> None:
        super().__init__()
        self.model = model
        self.info = model.info

    def forward(self, images: Tensor, sizes: Sequence[Size]) -> list[Detections]:
        """Detections in padded images (B, 3, H, W), whose own heights and widths are `sizes`."""
        return [
            Detections(*self.model(image[None, :, :height, :width].contiguous()))
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
