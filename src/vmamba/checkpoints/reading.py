"""Read weights from files without running anything that is pickled in them."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vmamba.errors import CheckpointError

Weights = Literal["auto", "model", "model_ema"]
StateDict = dict[str, Tensor]

#: Where the weights lie in a training checkpoint: the authors' names, then those of OpenMMLab and timm.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "auto": ("model", "state_dict", "model_ema", "state_dict_ema"),
    "model": ("model", "state_dict"),
    "model_ema": ("model_ema", "state_dict_ema"),
}


class _Inert:
    """Stands in for an object of a library that is not needed here; remembers nothing, runs nothing."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


# What the authors' training (yacs) and OpenMMLab's leave beside the weights. Read as plain containers.
_BESIDE_THE_WEIGHTS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (OrderedDict, "yacs.config.CfgNode"),
    (OrderedDict, "mmengine.config.config.ConfigDict"),
    *(
        (_Inert, name)
        for name in (
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.ndarray",
            "numpy.dtype",
            "builtins.getattr",  # methods that they remember by name
        )
    ),
]


def read_checkpoint(source: str | Path | Mapping[str, Any], weights: Weights = "auto") -> StateDict:
    """The weights in a file or mapping, by the names they have there.

    Files are read without running anything that is pickled in them: the configuration objects which the authors'
    training saved beside the weights come out as plain containers, every other object is refused.

    Args:
        source: Path of a ``.safetensors`` file or of one written by ``torch.save``, or its content.
        weights: Which weights of a training checkpoint: ``"model"``, ``"model_ema"`` (their moving average), or
            ``"auto"``: the model's, as the authors' loaders do, or the average where there is nothing else.

    Raises:
        CheckpointError: If there is no such file, it is damaged, it is refused, or it has no such weights.
        ValueError: For another value of `weights`.
    """
    if weights not in _SECTIONS:
        raise ValueError(f"weights must be one of {', '.join(_SECTIONS)}, got {weights!r}")
    content = source if isinstance(source, Mapping) else _read_file(Path(source))
    label = label_of(source)
    for section in _SECTIONS[weights]:
        if isinstance(content.get(section), Mapping):
            content = content[section]
            break
    else:
        if weights == "model_ema" or not any(isinstance(value, Tensor) for value in content.values()):
            found = ", ".join(map(str, list(content)[:8])) or "nothing"
            wanted = "weights" if weights == "auto" else f"{weights!r} weights"
            raise CheckpointError(f"{label}: has no {wanted} (found: {found})")
    state_dict = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state_dict:
        raise CheckpointError(f"{label}: holds no tensors")
    return state_dict


def label_of(source: object) -> str:
    return "the state dict" if isinstance(source, Mapping) else str(source)


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder, not a checkpoint' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_BESIDE_THE_WEIGHTS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, of no use to whoever wants the weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks to load {refused[1]!r}, which no checkpoint needs" if refused else "it is not a checkpoint"
        raise CheckpointError(f"{path}: refused, nothing in it was run: {what}") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({reason})") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a mapping of weights")
    return content
