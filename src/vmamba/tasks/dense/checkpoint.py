"""Detectors and segmenters from checkpoints: OpenMMLab's files, as the authors released them, and ours."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from vmamba.checkpoints.info import Task, attach_info, info_path
from vmamba.checkpoints.loading import adapted, load_whole
from vmamba.checkpoints.reading import Weights
from vmamba.checkpoints.recognition import Checkpoint, open_checkpoint
from vmamba.errors import CheckpointError
from vmamba.model.config import VMambaConfig
from vmamba.zoo import architecture_of

Model = TypeVar("Model", bound=nn.Module)

_MAX_WIDTH = 1 << 16


@dataclass(frozen=True)
class Layout(Generic[Model]):
    """A kind of model in a checkpoint.

    Attributes:
        task: What it does.
        model: Its class, made from a configuration.
        config: The configuration's class, with the fields ``backbone`` and ``classes``.
        widths: Field of the configuration → the entry whose first axis it is, for files without a description.
        classifier: The entry whose first axis counts the classes.
        background: Classes there that have no name: 1 where the background is one.
        class_names: Those of the published data set, for files with as many classes and no names.
    """

    task: Task
    model: Callable[[Any], Model]
    config: Callable[..., Any]
    widths: Mapping[str, str]
    classifier: str
    background: int
    class_names: tuple[str, ...]


def load_dense(
    layout: Layout[Model],
    source: str | Path | Checkpoint,
    name: str | None = None,
    *,
    backbone: VMambaConfig | None = None,
    weights: Weights = "auto",
    backbone_options: Mapping[str, Any] | None = None,
) -> Model:
    """The model of that kind in a checkpoint; see `vmamba.tasks.detection.checkpoint.load_detector`."""
    checkpoint = open_checkpoint(source, weights)
    checkpoint.expect(layout.task)
    architecture = _backbone(checkpoint, name, backbone, backbone_options)
    config = _config(layout, checkpoint, architecture)
    with torch.device("meta"):
        model = layout.model(config)
    fitted = adapted(checkpoint, in_chans=architecture.in_chans)
    load_whole(model, fitted)
    attach_info(model, fitted.info)
    return model


def _backbone(
    checkpoint: Checkpoint, name: str | None, config: VMambaConfig | None, options: Mapping[str, Any] | None
) -> VMambaConfig:
    if config is None and name is not None:
        config = architecture_of(name)
    return checkpoint.architecture(config).override(options or {})


def _config(layout: Layout[Any], checkpoint: Checkpoint, backbone: VMambaConfig) -> Any:
    """The architecture that the description says, or the entries show."""
    classes = _width(checkpoint, layout.classifier) - layout.background
    info = checkpoint.info
    values: dict[str, Any] = dict(info.architecture) if info is not None and "backbone" in info.architecture else {}
    names = info.class_names if info is not None else ()
    if not names:
        known = layout.class_names
        names = known if classes == len(known) else tuple(f"class {i}" for i in range(classes))
    if not values:
        values = {field: _width(checkpoint, entry) for field, entry in layout.widths.items()}
    values |= {"backbone": dataclasses.replace(backbone, num_classes=0, drop_path_rate=0.0), "classes": names}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        config = layout.config(**values)
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
