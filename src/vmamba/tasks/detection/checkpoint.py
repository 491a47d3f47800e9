"""Detectors from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmamba.checkpoints.reading import Weights
from vmamba.checkpoints.recognition import Checkpoint
from vmamba.data.coco import CLASSES
from vmamba.model.config import VMambaConfig
from vmamba.tasks.dense.checkpoint import Layout, load_dense
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig

_WIDTHS = {
    "channels": "fpn.inner_blocks.0.0.weight",
    "box_channels": "box_head.fc6.weight",
    "mask_channels": "mask_head.0.0.weight",
}
_LAYOUT = Layout("detection", MaskRCNN, MaskRCNNConfig, _WIDTHS, "class_score.weight", 1, CLASSES)


def load_detector(
    source: str | Path | Checkpoint,
    name: str | None = None,
    *,
    backbone: VMambaConfig | None = None,
    weights: Weights = "auto",
    backbone_options: Mapping[str, Any] | None = None,
) -> MaskRCNN:
    """The Mask R-CNN in a checkpoint.

    ``model.info`` says what else is known of it, see `vmamba.checkpoints.info`.

    Args:
        source: A ``.pth`` of the authors (or of MMDetection with our backbone), a ``.safetensors`` of ours with its
            ``.json``, or an opened checkpoint.
        name: The backbone, one of `vmamba.list_models`; by default what the checkpoint says or looks like.
        backbone: Its architecture instead.
        weights: See `vmamba.checkpoints.reading.read_checkpoint`.
        backbone_options: Fields of `VMambaConfig` to change: ``drop_path_rate``, or ``in_chans``, for which the first
            convolution is adapted.

    Raises:
        CheckpointError: If it cannot be read, is for another task, or does not fit.
        OptionError: For an unknown name, or impossible options.
    """
    return load_dense(_LAYOUT, source, name, backbone=backbone, weights=weights, backbone_options=backbone_options)
