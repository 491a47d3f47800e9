"""Load weights into models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from vmamba.checkpoints.authors import is_dense, to_our_names
from vmamba.checkpoints.reading import StateDict, Weights, label_of, read_checkpoint
from vmamba.checkpoints.recognition import identify
from vmamba.errors import CheckpointError


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
            raise CheckpointError(_explain(model, label_of(source), ours, state_dict, target, faults))
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
