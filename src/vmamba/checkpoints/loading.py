"""Load weights into models."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from vmamba.checkpoints.info import ModelInfo, info_path
from vmamba.checkpoints.reading import Entries, Weights
from vmamba.checkpoints.recognition import Checkpoint, identify, open_checkpoint
from vmamba.checkpoints.stored import load
from vmamba.errors import CheckpointError
from vmamba.terminal import printable

_FIRST_CONV = "stem.conv1.weight"


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
    source: str | Path | Mapping[str, Any] | Checkpoint,
    *,
    weights: Weights = "auto",
    strict: bool = True,
) -> LoadResult:
    """Load a checkpoint, in the names of any library that `vmamba.checkpoints.names` knows, into a VMamba.

    A position embedding of another size is interpolated. A model without a classifier takes the rest of a classifier's
    weights; a classifier takes the backbone of a detector or segmenter and keeps its own head; stage norms are loaded
    where both have them. Nothing is changed unless everything fits and is finite.

    Args:
        model: A `VMamba`, or timm's ``features_only`` form of one. On the ``meta`` device it takes the tensors of the
            checkpoint, in its own dtype; elsewhere it copies their values.
        source: Path of a ``.safetensors`` or ``torch.save`` file, a state dict, or an opened checkpoint.
        weights: See `vmamba.checkpoints.reading.read_checkpoint`.
        strict: Refuse a checkpoint with missing, unexpected or misshaped entries; otherwise load those that fit.

    Returns:
        What was left out on either side.

    Raises:
        CheckpointError: If the checkpoint cannot be read, does not fit (the line says which variant it looks like), or
            holds NaN or infinite values. `vmamba.checkpoints.reading.read_checkpoint` gives such tensors as they are.
    """
    checkpoint = open_checkpoint(source, weights)
    rename = _names_in(model)
    entries = {rename(name): entry for name, entry in checkpoint.backbone.items()}
    target = model.state_dict()
    _resize_pos_embed(entries, target)

    misshaped = [n for n in target if n in entries and not _fits(entries[n], target[n])]
    missing = [n for n in target if n not in entries]
    unexpected = [n for n in entries if n not in target]
    if strict:
        parts, present = {_part(n) for n in target}, {_part(n) for n in entries}
        optional = {"norm", "head"} if checkpoint.is_dense else {"stage_norms"}
        optional |= {"head"} if checkpoint.headless else set()
        # A feature extractor has neither a final norm nor, perhaps, the last stages.
        unused = {"norm", "head", "stage_norms"} | ({"stages"} if "norm" not in parts else set())
        faults = (
            [n for n in missing if _part(n) in present or _kind_of(n) not in optional],
            [n for n in unexpected if _part(n) in parts or _kind_of(n) not in unused],
            misshaped,
        )
        if any(faults):
            raise CheckpointError(_explain(model, checkpoint, entries, target, faults))
    assign(model, {n: e for n, e in entries.items() if n in target and n not in misshaped}, checkpoint.label)
    return LoadResult(missing + misshaped, unexpected + misshaped)


def load_whole(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load every entry of a detector or segmenter, all or nothing; see `load_weights`.

    Raises:
        CheckpointError: If one is missing, unexpected, misshaped, damaged or not finite.
    """
    target = model.state_dict()
    entries = checkpoint.entries
    if any(name.startswith("backbone.vmamba.") for name in target):  # transformers' backbone around ours
        entries = {re.sub(r"^backbone\.", "backbone.vmamba.", name): entry for name, entry in entries.items()}
    missing, unexpected = [n for n in target if n not in entries], [n for n in entries if n not in target]
    misshaped = [n for n in target if n in entries and not _fits(entries[n], target[n])]
    if missing or unexpected or misshaped:
        listed = _listed(missing, unexpected, misshaped, entries, target)
        raise CheckpointError(f"{checkpoint.label}: does not fit: {listed}")
    assign(model, entries, checkpoint.label)


def adapted(checkpoint: Checkpoint, *, in_chans: int | None = None, num_classes: int | None = None) -> Checkpoint:
    """The checkpoint for other images or classes, as timm adapts its pre-trained weights.

    Args:
        checkpoint: Of a classifier or backbone.
        in_chans: Channels of the images; the first convolution is summed or repeated to fit. Weights for grey images
            then see the mean of the channels.
        num_classes: Where the checkpoint has another number, models keep their own classifier.

    Raises:
        CheckpointError: If the first convolution cannot be adapted, or the description says something about other
            channels.
    """
    entries = dict(checkpoint.entries)
    name = next((n for n in (f"backbone.{_FIRST_CONV}", _FIRST_CONV) if n in entries), _FIRST_CONV)
    if in_chans is not None and in_chans != checkpoint.in_chans:
        if checkpoint.in_chans == 1:
            entries[name] = load(entries[name]).expand(-1, in_chans, -1, -1) / in_chans
        elif checkpoint.in_chans == 3:
            entries[name] = adapt_input_conv(in_chans, load(entries[name]))
        else:
            raise CheckpointError(
                f"{checkpoint.label}: its images have {checkpoint.in_chans} channels, which cannot be adapted to "
                f"{in_chans}; only weights for 1 or 3 can"
            )
    info = _adapted_info(checkpoint, checkpoint.in_chans if in_chans is None else in_chans)
    if num_classes is not None and num_classes != checkpoint.num_classes:
        return Checkpoint(
            checkpoint.label, {n: e for n, e in entries.items() if _part(n) != "head"}, info, headless=True
        )
    return Checkpoint(checkpoint.label, entries, info)


def _adapted_info(checkpoint: Checkpoint, in_chans: int) -> ModelInfo | None:
    """The description of a checkpoint, for images of so many channels."""
    info = checkpoint.info
    if info is None or info.preprocessing is None:
        return info
    known = info.preprocessing
    if len(known.mean) == checkpoint.in_chans and 1 not in (checkpoint.in_chans, in_chans):
        return info
    try:
        return dataclasses.replace(info, preprocessing=known.for_channels(in_chans))
    except ValueError as error:
        raise CheckpointError(
            f"{info_path(checkpoint.label)}: {error}; correct it, or remove it to do without"
        ) from None


def assign(model: nn.Module, entries: Mapping[str, Any], label: str) -> None:
    """Put tensors that are known to fit into a model, once all of them have been read and are finite.

    Raises:
        CheckpointError: If one is damaged, or holds NaN or infinite values.
    """
    target = model.state_dict()
    values = {name: load(entry).detach() for name, entry in entries.items()}
    wrong = [n for n, value in values.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if wrong:
        listed = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"{label}: holds NaN or infinite values in {len(wrong)} of {len(values)} entries ({listed}): its training "
            "went wrong; use an earlier checkpoint"
        )
    empty = any(tensor.is_meta for tensor in target.values())
    if empty:
        values = {n: v.to(target[n].dtype, memory_format=torch.contiguous_format) for n, v in values.items()}
    model.load_state_dict(values, strict=False, assign=empty)


def _fits(entry: Any, target: Tensor) -> bool:
    """True for the same shape and a number of the same kind."""
    return tuple(entry.shape) == tuple(target.shape) and _number(entry.dtype) == _number(target.dtype)


def _number(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex


def _part(name: str) -> str:
    """The part of a model that an entry belongs to, and that may be absent as a whole."""
    match = re.match(r"(?:model\.)?(norm|head|stage_norms\.\d+|stages[._]\d+)\.", name)
    return match[1] if match else "stem"


def _kind_of(name: str) -> str:
    return re.split(r"[._]\d", _part(name))[0]


def _names_in(model: nn.Module) -> Callable[[str], str]:
    """Map from the names of a `VMamba` to those in a timm feature extractor around one."""
    names = model.state_dict().keys()
    if any(name.startswith("stages_0.") for name in names):
        return lambda name: re.sub(r"^stages\.(\d+)\.", r"stages_\1.", name)
    if any(name.startswith("model.stages.") for name in names):
        return lambda name: f"model.{name}"
    return lambda name: name


def _resize_pos_embed(entries: Entries, target: Mapping[str, Tensor]) -> None:
    for name in ("pos_embed", "model.pos_embed"):
        if name in target and name in entries and len(entries[name].shape) == target[name].ndim == 4:
            size = target[name].shape[2:]
            if tuple(entries[name].shape[2:]) != tuple(size):
                embed = load(entries[name]).float()
                entries[name] = nn.functional.interpolate(embed, size=size, mode="bicubic", align_corners=False)


def _explain(
    model: nn.Module,
    checkpoint: Checkpoint,
    entries: Entries,
    target: Entries,
    faults: tuple[list[str], list[str], list[str]],
) -> str:
    missing, unexpected, misshaped = faults
    label = checkpoint.label
    name = getattr(model, "pretrained_cfg", {}).get("architecture") or "the model"
    if misshaped and not missing and not unexpected and all(_part(n) == "head" for n in misshaped):
        there, here = checkpoint.num_classes, target[misshaped[0]].shape[0]
        return (
            f"{label}: its classifier has {there} classes, {name}'s {here}; "
            f"create the model with num_classes={there}, or load with strict=False to keep the model's classifier"
        )
    if misshaped and not missing and not unexpected and all(n.endswith(_FIRST_CONV) for n in misshaped):
        return (
            f"{label}: is for images of {checkpoint.in_chans} channels, {name} for {target[misshaped[0]].shape[1]}; "
            f"create the model with in_chans={checkpoint.in_chans}, or with checkpoint=…, which adapts the weights"
        )
    looks_like = identify(checkpoint.backbone)
    guess = f", it looks like {looks_like}" if looks_like and looks_like != name else ""
    return f"{label}: does not fit {name}{guess}: {_listed(missing, unexpected, misshaped, entries, target)}"


def _listed(
    missing: list[str], unexpected: list[str], misshaped: list[str], entries: Mapping[str, Any], target: Entries
) -> str:
    """Faults, the first three names of each kind."""

    def described(name: str) -> str:
        entry, wanted = entries[name], target[name]
        if tuple(entry.shape) == tuple(wanted.shape):
            return f"{name}: {entry.dtype}, not {wanted.dtype}"
        return f"{name}: {tuple(entry.shape)}, not {tuple(wanted.shape)}"

    return "; ".join(
        f"{len(names)} {what} ({', '.join(printable(describe(n)) for n in names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names, describe in (
            ("missing", missing, str),
            ("unexpected", unexpected, lambda name: name[:120]),
            ("misshaped", misshaped, described),
        )
        if names
    )
