"""Segmenters from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmamba.checkpoints.reading import Weights
from vmamba.checkpoints.recognition import Checkpoint
from vmamba.data.ade20k import CLASSES
from vmamba.model.config import VMambaConfig
from vmamba.tasks.dense.checkpoint import Layout, load_dense
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

_WIDTHS = {
    "channels": "decode_head.bottleneck.conv.weight",
    "auxiliary_channels": "auxiliary_head.convs.0.conv.weight",
}
_LAYOUT = Layout("segmentation", UperNet, UperNetConfig, _WIDTHS, "decode_head.classifier.weight", 0, CLASSES)


def load_segmenter(
    source: str | Path | Checkpoint,
    name: str | None = None,
    *,
    backbone: VMambaConfig | None = None,
    weights: Weights = "auto",
    backbone_options: Mapping[str, Any] | None = None,
) -> UperNet:
    """The UperNet in a checkpoint; see `vmamba.tasks.detection.checkpoint.load_detector`."""
    return load_dense(_LAYOUT, source, name, backbone=backbone, weights=weights, backbone_options=backbone_options)
