"""Write weights as safetensors, their configuration beside them, and read that again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from vmamba.errors import CheckpointError
from vmamba.files import atomic_write
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig


def config_path(weights: str | Path) -> Path:
    """Where the configuration of a ``.safetensors`` file lies: beside it, ``.json``."""
    return Path(weights).with_suffix(".json")


def save_weights(model: VMamba, path: str | Path) -> Path:
    """Write a model's weights as safetensors and its configuration as JSON beside them.

    Files are replaced only once they are whole: a full disk leaves what was there.

    Args:
        model: The model.
        path: Ends in ``.safetensors``.

    Returns:
        The path.

    Raises:
        ValueError: For another ending.
        CheckpointError: If a file cannot be written.
    """
    return write_weights(model.state_dict(), model.config.to_json(), path)


def write_weights(state_dict: Mapping[str, Tensor], config: str, path: str | Path) -> Path:
    """`save_weights` for a model of any kind: its state dict, and its configuration as JSON."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors")
    _write(config_path(path), config.encode())
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    _write(path, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    return path


def load_config(weights: str | Path) -> VMambaConfig | None:
    """The configuration beside a ``.safetensors`` file, of the backbone alone, or None if there is none.

    Raises:
        CheckpointError: If it is there and not valid.
    """
    values = load_settings(weights)
    if values is None:
        return None
    try:
        return VMambaConfig.from_dict(values.get("backbone", values))  # within that of a detector or segmenter
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{config_path(weights)}: {error}") from None


def load_settings(weights: str | Path) -> dict[str, Any] | None:
    """The content of the JSON file beside a ``.safetensors`` file, or None if there is none.

    Raises:
        CheckpointError: If it is there and not a JSON object.
    """
    path = config_path(weights)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object of options, got {type(values).__name__}")
    return values


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write: {error.strerror or error}; nothing was changed") from None
