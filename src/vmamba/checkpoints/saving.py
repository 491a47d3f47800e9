"""Write weights as safetensors, and what they are beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from vmamba.checkpoints.info import Preprocessing, info_of, info_path
from vmamba.errors import CheckpointError, OptionError, system_reason
from vmamba.files import atomic_write


def save_weights(
    model: nn.Module,
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a classifier, detector or segmenter as safetensors, and its description as JSON beside it.

    The description (see `vmamba.checkpoints.info`) holds the configuration of `model` and what is given here; what is
    not given is taken from ``model.info``, which models have that were loaded from such a file. Files are replaced only
    once they are whole: a full disk leaves what was there.

    Args:
        model: A `VMamba`, `MaskRCNN` or `UperNet`.
        path: Ends in ``.safetensors``.
        class_names: One a class, in order; detectors and segmenters have them in their configuration.
        preprocessing: Of images.
        training: Summary of the training, of JSON values.

    Returns:
        The path.

    Raises:
        OptionError: For another ending, or another number of names than the model has classes.
        CheckpointError: If a file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(f"{path}: weights are written as .safetensors")
    info = info_of(model)
    if class_names is not None:
        classes = info.architecture.get("num_classes", len(info.class_names))
        if len(class_names) != classes:
            raise OptionError(f"{path}: {len(class_names)} class names for {classes} classes")
        info = dataclasses.replace(info, class_names=tuple(class_names))
    info = dataclasses.replace(
        info, preprocessing=preprocessing or info.preprocessing, training=training or info.training
    )
    # Names that are not UTF-8 are written with JSON's own escapes.
    _write(info_path(path), info.to_json().encode(errors="backslashreplace"))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _write(path, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    return path


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write, and nothing was changed: {system_reason(error)}") from None
