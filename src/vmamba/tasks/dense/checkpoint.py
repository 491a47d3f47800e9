"""Detectors and segmenters from checkpoints: OpenMMLab's files, as the authors released them, and ours."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from vmamba.checkpoints.info import attach_info, info_path
from vmamba.checkpoints.loading import adapted, load_whole
from vmamba.checkpoints.reading import Weights
from vmamba.checkpoints.recognition import Checkpoint, open_checkpoint
from vmamba.data import ade20k, coco
from vmamba.errors import CheckpointError
from vmamba.model.config import VMambaConfig
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig
from vmamba.zoo import architecture_of, override

Config = TypeVar("Config", MaskRCNNConfig, UperNetConfig)

#: Entries whose first axis is the width of a part, for files without a description.
_DETECTOR_WIDTHS = {
    "channels": "fpn.inner_blocks.0.0.weight",
    "box_channels": "box_head.fc6.weight",
    "mask_channels": "mask_head.0.0.weight",
}
_SEGMENTER_WIDTHS = {
    "channels": "decode_head.bottleneck.conv.weight",
    "auxiliary_channels": "auxiliary_head.convs.0.conv.weight",
}
_MAX_WIDTH = 1 << 16


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
    checkpoint = open_checkpoint(source, weights)
    checkpoint.expect("detection")
    architecture = _backbone(checkpoint, name, backbone, backbone_options)
    classes = _width(checkpoint, "class_score.weight") - 1  # the last is the background
    config = _config(MaskRCNNConfig, checkpoint, architecture, _DETECTOR_WIDTHS, classes, coco.CLASSES)
    with torch.device("meta"):
        model = MaskRCNN(config)
    load_whole(model, adapted(checkpoint, in_chans=architecture.in_chans))
    attach_info(model, checkpoint.info)
    return model


def load_segmenter(
    source: str | Path | Checkpoint,
    name: str | None = None,
    *,
    backbone: VMambaConfig | None = None,
    weights: Weights = "auto",
    backbone_options: Mapping[str, Any] | None = None,
) -> UperNet:
    """The UperNet in a checkpoint; see `load_detector`."""
    checkpoint = open_checkpoint(source, weights)
    checkpoint.expect("segmentation")
    architecture = _backbone(checkpoint, name, backbone, backbone_options)
    classes = _width(checkpoint, "decode_head.classifier.weight")
    config = _config(UperNetConfig, checkpoint, architecture, _SEGMENTER_WIDTHS, classes, ade20k.CLASSES)
    with torch.device("meta"):
        model = UperNet(config)
    load_whole(model, adapted(checkpoint, in_chans=architecture.in_chans))
    attach_info(model, checkpoint.info)
    return model


def _backbone(
    checkpoint: Checkpoint, name: str | None, config: VMambaConfig | None, options: Mapping[str, Any] | None
) -> VMambaConfig:
    if config is None and name is not None:
        config = architecture_of(name)
    return override(checkpoint.architecture(config), options or {})


def _config(
    kind: Callable[..., Config],
    checkpoint: Checkpoint,
    backbone: VMambaConfig,
    widths: Mapping[str, str],
    classes: int,
    known: Sequence[str],
) -> Config:
    """The architecture that the description says, or the entries show."""
    info = checkpoint.info
    values: dict[str, Any] = dict(info.architecture) if info is not None and "backbone" in info.architecture else {}
    names = info.class_names if info is not None else ()
    if not names:
        names = tuple(known) if classes == len(known) else tuple(f"class {i}" for i in range(classes))
    if not values:
        values = {field: _width(checkpoint, entry) for field, entry in widths.items()}
    values |= {"backbone": dataclasses.replace(backbone, num_classes=0, drop_path_rate=0.0), "classes": names}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        config = kind(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{info_path(checkpoint.label)}: {error}") from None
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("backbone", "classes") and not _is_possible(value, field.default):
            raise CheckpointError(f"{info_path(checkpoint.label)}: {field.name} is {reprlib.repr(value)}")
    if len(names) != classes:
        raise CheckpointError(
            f"{checkpoint.label}: does not fit: {classes} classes, its description names {len(names)}"
        )
    return config


def _is_possible(value: object, default: object) -> bool:
    """True for a value like the default, within bounds: counts and widths, fractions, or a few counts."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and 0 < len(value) <= 16 and all(_is_possible(item, 1) for item in value)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and 0 <= value <= 1
    return type(value) is int and 1 <= value <= _MAX_WIDTH


def _width(checkpoint: Checkpoint, entry: str) -> int:
    if entry not in checkpoint.entries:
        raise CheckpointError(f"{checkpoint.label}: lacks {entry}, so it is not a whole model")
    shape = checkpoint.entries[entry].shape
    if not shape or not 1 <= shape[0] <= _MAX_WIDTH:
        raise CheckpointError(f"{checkpoint.label}: {entry} has the impossible shape {tuple(shape)}")
    return int(shape[0])
