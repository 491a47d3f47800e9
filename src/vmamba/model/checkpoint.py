"""Reading, translating, checking and writing weights: the authors' files and ours."""

from __future__ import annotations

import json
import os
import pickle
import re
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vmamba.model.author_names import is_dense, to_our_names
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig

Weights = Literal["auto", "model", "model_ema"]
StateDict = dict[str, Tensor]

#: Where the weights lie in a training checkpoint: the authors' names, then those of OpenMMLab and timm.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "auto": ("model", "state_dict", "model_ema", "state_dict_ema"),
    "model": ("model", "state_dict"),
    "model_ema": ("model_ema", "state_dict_ema"),
}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, is refused, or does not fit the model."""


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


# --------------------------------------------------------------------------------------------------------------------
# Reading


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
    label = _label(source)
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


def _label(source: object) -> str:
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


# --------------------------------------------------------------------------------------------------------------------
# Loading


class LoadResult(NamedTuple):
    """Names that a load left out, as `torch.nn.Module.load_state_dict` reports them.

    Attributes:
        missing_keys: Entries of the model that kept their values.
        unexpected_keys: Entries of the checkpoint that were not used.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    weights: Weights = "auto",
    strict: bool = True,
) -> LoadResult:
    """Load a checkpoint, in the authors' names or ours, into a VMamba.

    A position embedding of another size is interpolated. A model without a classifier takes the rest of a classifier's
    weights; a classifier takes the backbone of a detector or segmenter and keeps its own head; stage norms are loaded
    where both have them. Nothing is changed unless everything fits.

    Args:
        model: A `VMamba`, or timm's ``features_only`` form of one.
        source: Path of a ``.safetensors`` or ``torch.save`` file, or a state dict.
        weights: See `read_checkpoint`.
        strict: Refuse a checkpoint with missing, unexpected or misshaped entries; otherwise load those that fit.

    Returns:
        What was left out on either side.

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit; the line says which variant it looks like.
    """
    raw = read_checkpoint(source, weights)
    ours = to_our_names(raw)
    dense = is_dense(raw)
    rename = _names_in(model)
    state_dict = {rename(name): tensor for name, tensor in ours.items()}
    target = model.state_dict()
    _resize_pos_embed(state_dict, target)

    misshaped = [n for n in target if n in state_dict and state_dict[n].shape != target[n].shape]
    missing = [n for n in target if n not in state_dict]
    unexpected = [n for n in state_dict if n not in target]
    if strict:
        lacking = {_part(n) for n in missing} - {_part(n) for n in state_dict}
        excused = lacking & ({"norm", "head"} if dense else {"stage_norms"})
        faults = (
            [n for n in missing if _part(n) not in excused],
            [n for n in unexpected if _part(n) == "backbone" or _part(n) in {_part(t) for t in target}],
            misshaped,
        )
        if any(faults):
            raise CheckpointError(_explain(model, _label(source), ours, state_dict, target, faults))
    model.load_state_dict({n: t for n, t in state_dict.items() if n in target and n not in misshaped}, strict=False)
    return LoadResult(missing + misshaped, unexpected + misshaped)


def _part(name: str) -> str:
    """The part of a model that an entry belongs to: a checkpoint may lack the last three as a whole."""
    match = re.match(r"(?:model\.)?(norm|head|stage_norms)\.", name)
    return match[1] if match else "backbone"


def _names_in(model: nn.Module) -> Callable[[str], str]:
    """How timm's feature extractors rename the entries of the model inside them."""
    names = model.state_dict().keys()
    if any(name.startswith("stages_0.") for name in names):
        return lambda name: re.sub(r"^stages\.(\d+)\.", r"stages_\1.", name)
    if any(name.startswith("model.stages.") for name in names):
        return lambda name: f"model.{name}"
    return lambda name: name


def _resize_pos_embed(state_dict: StateDict, target: Mapping[str, Tensor]) -> None:
    for name in ("pos_embed", "model.pos_embed"):
        if name in target and name in state_dict and state_dict[name].ndim == target[name].ndim == 4:
            size = target[name].shape[2:]
            if state_dict[name].shape[2:] != size:
                embed = state_dict[name].float()
                state_dict[name] = nn.functional.interpolate(embed, size=size, mode="bicubic", align_corners=False)


def _explain(
    model: nn.Module,
    label: str,
    ours: StateDict,
    state_dict: StateDict,
    target: Mapping[str, Tensor],
    faults: tuple[list[str], list[str], list[str]],
) -> str:
    missing, unexpected, misshaped = faults
    name = getattr(model, "pretrained_cfg", {}).get("architecture") or "the model"
    heads = [n for n in misshaped if _part(n) == "head"]
    if heads and len(heads) == len(misshaped) and not missing and not unexpected:
        there, here = state_dict[heads[0]].shape[0], target[heads[0]].shape[0]
        return (
            f"{label}: its classifier has {there} classes, {name}'s {here}; "
            f"create the model with num_classes={there}, or pass strict=False to keep a fresh classifier"
        )
    details = [
        f"{len(names)} {what} ({', '.join(map(describe, names[:3]))}{', …' if len(names) > 3 else ''})"
        for what, names, describe in (
            ("missing", missing, str),
            ("unexpected", unexpected, str),
            ("misshaped", misshaped, lambda n: f"{n}: {tuple(state_dict[n].shape)}, not {tuple(target[n].shape)}"),
        )
        if names
    ]
    looks_like = identify(ours)
    guess = f", it looks like {looks_like}" if looks_like and looks_like != name else ""
    return f"{label}: does not fit {name}{guess}: {'; '.join(details)}"


def identify(state_dict: Mapping[str, Tensor]) -> str | None:
    """Name of the registered variant whose stem and stages have these entries (our names) and shapes."""
    from vmamba.model.zoo import VARIANTS  # the zoo builds on this module

    shapes = {n: tuple(t.shape) for n, t in state_dict.items() if n.startswith(("stem.", "stages."))}
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            candidate = VMamba(variant.config).state_dict()
        if shapes == {n: tuple(t.shape) for n, t in candidate.items() if n.startswith(("stem.", "stages."))}:
            return name
    return None


# --------------------------------------------------------------------------------------------------------------------
# Writing


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
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.unlink(file.name)
                raise
        os.replace(file.name, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write: {error.strerror or error}; nothing was changed") from None
