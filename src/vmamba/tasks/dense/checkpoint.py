"""Checkpoints of detectors and segmenters: OpenMMLab's files, as the authors released them, and ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmamba.checkpoints.authors import to_our_names
from vmamba.checkpoints.info import attach_info, info_path, read_config, read_info
from vmamba.checkpoints.openmmlab import Kind, detector_names, kind_of, segmenter_names
from vmamba.checkpoints.reading import Weights, read_checkpoint
from vmamba.checkpoints.recognition import identify
from vmamba.data import ade20k, coco
from vmamba.errors import CheckpointError
from vmamba.model.config import VMambaConfig
from vmamba.model.variants import VARIANTS
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

_WHAT = {"classification": "a classifier", "detection": "a detector", "segmentation": "a segmenter"}
_COMMAND = {"classification": "vmamba predict", "detection": "vmamba detect", "segmentation": "vmamba segment"}


def load_detector(
    source: str | Path, name: str | None = None, *, backbone: VMambaConfig | None = None, weights: Weights = "auto"
) -> MaskRCNN:
    """The Mask R-CNN in a checkpoint.

    Args:
        source: A ``.pth`` of the authors (or of MMDetection with our backbone), or a ``.safetensors`` of ours with its
            ``.json``.
        name: The backbone, one of `vmamba.list_models`; by default what the checkpoint says or looks like.
        backbone: Its architecture instead.
        weights: See `read_checkpoint`.

    Raises:
        CheckpointError: If it cannot be read, is for another task, or does not fit.
        ValueError: For an unknown name.
    """
    state_dict, values = _read(source, "detection", detector_names, name, backbone, weights)
    if "channels" not in values:
        values |= {
            "channels": _width(source, state_dict, "fpn.inner_blocks.0.0.weight"),
            "box_channels": _width(source, state_dict, "box_head.fc6.weight"),
            "mask_channels": _width(source, state_dict, "mask_head.0.0.weight"),
            "classes": _names(_width(source, state_dict, "class_score.weight") - 1, coco.CLASSES),
        }
    config = _config(source, MaskRCNNConfig, values)
    with torch.device("meta"):
        model = MaskRCNN(config)
    _load(source, model, state_dict)
    return model


def load_segmenter(
    source: str | Path, name: str | None = None, *, backbone: VMambaConfig | None = None, weights: Weights = "auto"
) -> UperNet:
    """The UperNet in a checkpoint; see `load_detector`."""
    state_dict, values = _read(source, "segmentation", segmenter_names, name, backbone, weights)
    if "channels" not in values:
        values |= {
            "channels": _width(source, state_dict, "decode_head.bottleneck.conv.weight"),
            "auxiliary_channels": _width(source, state_dict, "auxiliary_head.convs.0.conv.weight"),
            "classes": _names(_width(source, state_dict, "decode_head.classifier.weight"), ade20k.CLASSES),
        }
    config = _config(source, UperNetConfig, values)
    with torch.device("meta"):
        model = UperNet(config)
    _load(source, model, state_dict)
    return model


def _read(
    source: str | Path,
    kind: Kind,
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    name: str | None,
    backbone: VMambaConfig | None,
    weights: Weights,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by our names, and the configuration as far as it is known: at least ``backbone``."""
    raw = read_checkpoint(source, weights)
    found = kind_of(raw)
    if found != kind:
        raise CheckpointError(f"{source}: holds {_WHAT[found]}, not {_WHAT[kind]}; it is for '{_COMMAND[found]}'")
    info = read_info(source)
    values = {} if info is None else {**info.architecture, "classes": info.class_names}
    if name is not None and name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(VARIANTS)}")
    if backbone is None:
        known = read_config(source)
        variant = name or (None if known else identify(to_our_names(raw)))
        if known is None and variant is None:
            raise CheckpointError(
                f"{source}: its backbone fits none of the known variants and there is no {info_path(source).name} "
                "beside it; say which it is with --model or --config"
            )
        backbone = known if name is None and known else VARIANTS[str(variant)].config
    return translate(raw), values | {"backbone": dataclasses.replace(backbone, num_classes=0, drop_path_rate=0.0)}


def _width(source: str | Path, state_dict: Mapping[str, Tensor], entry: str) -> int:
    if entry not in state_dict:
        raise CheckpointError(f"{source}: lacks {entry}, so it is not a whole model")
    return state_dict[entry].shape[0]


def _names(number: int, known: Sequence[str]) -> tuple[str, ...]:
    return tuple(known) if number == len(known) else tuple(f"class {i}" for i in range(number))


def _config(source: str | Path, kind: type[Any], values: Mapping[str, Any]) -> Any:
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{info_path(source)}: {error}") from None


def _load(source: str | Path, model: torch.nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Strictly, all or nothing; the model comes without memory and takes that of the weights."""
    target = model.state_dict()
    faults = {
        "missing": [n for n in target if n not in state_dict],
        "unexpected": [n for n in state_dict if n not in target],
        "misshaped": [n for n in target if n in state_dict and target[n].shape != state_dict[n].shape],
    }
    if any(faults.values()):
        listed = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for what, names in faults.items()
            if names
        )
        raise CheckpointError(f"{source}: does not fit: {listed}")
    model.load_state_dict(state_dict, assign=True)
    attach_info(model, read_info(source))
