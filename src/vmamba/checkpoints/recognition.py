"""Recognise what a checkpoint holds: for which task, which architecture, how many classes and channels."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vmamba.checkpoints.info import ModelInfo, Task, info_path, read_info
from vmamba.checkpoints.names import backbone_of, to_our_names
from vmamba.checkpoints.reading import Entries, Weights, label_of, read_file, select_weights
from vmamba.errors import CheckpointError
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.model.variants import VARIANTS

_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")
_DETECTOR = ("box_head.", "rpn_head.", "mask_head.", "class_score.")
_COMMANDS: dict[Task, tuple[str, str]] = {
    "classification": ("a classifier", "vmamba predict"),
    "detection": ("a detector", "vmamba detect"),
    "segmentation": ("a segmenter", "vmamba segment"),
}
_FIRST_CONV = "stem.conv1.weight"
_HEAD = "head.fc.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is read, recognised and translated; the values of its tensors may still be in the file.

    Attributes:
        label: The file, for messages.
        entries: Tensors by our names, see `vmamba.checkpoints.names`.
        info: The description beside the file, where there is one.
        headless: True where the classifier was left out, for models to keep their own.
    """

    label: str
    entries: Entries
    info: ModelInfo | None = None
    headless: bool = False

    @cached_property
    def task(self) -> Task:
        """Task of the weights, by their names."""
        if any(name.startswith(_DETECTOR) for name in self.entries):
            return "detection"
        return "segmentation" if any(name.startswith("decode_head.") for name in self.entries) else "classification"

    def expect(self, task: Task) -> None:
        """Check what the weights are for.

        Raises:
            CheckpointError: If it is something else; the line says which command they are for.
        """
        if self.task != task:
            what, command = _COMMANDS[self.task]
            raise CheckpointError(f"{self.label}: holds {what}, not {_COMMANDS[task][0]}; it is for '{command}'")

    @cached_property
    def is_dense(self) -> bool:
        """True for the weights of a detector or segmenter, or a backbone of one."""
        return any(name.startswith(("backbone.", "stage_norms.")) for name in self.entries)

    @cached_property
    def backbone(self) -> Entries:
        """The entries of the backbone, by its own names."""
        return backbone_of(self.entries)

    @cached_property
    def num_classes(self) -> int:
        """Classes of the classifier; 0 without one.

        Raises:
            CheckpointError: If its shape is impossible.
        """
        return self._size(_HEAD, 0, 2) if _HEAD in self.entries else 0

    @cached_property
    def in_chans(self) -> int:
        """Channels of the images.

        Raises:
            CheckpointError: If the first layer is missing or its shape is impossible.
        """
        if _FIRST_CONV not in self.backbone:
            raise CheckpointError(f"{self.label}: lacks {_FIRST_CONV}, so these are not the weights of a VMamba")
        return self._size(_FIRST_CONV, 1, 4)

    def architecture(self, config: VMambaConfig | None = None) -> VMambaConfig:
        """The configuration of the backbone.

        It is `config` where that is given, the one in the description, or that of the registered model whose entries
        these are. Classes and channels are those of the weights.

        Raises:
            CheckpointError: If nothing says which it is, or it cannot be that of these weights.
        """
        if config is None and self.info is not None and self.info.architecture:
            config = self._described()
        if config is None:
            variant = identify(self.backbone)
            if variant is None:
                raise CheckpointError(
                    f"{self.label}: fits none of the known variants and has no {info_path(self.label).name} beside it; "
                    "say which it is with --model, or give the authors' YAML to vmamba convert --config"
                )
            config = VARIANTS[variant].config
        depths = _depths(self.backbone)
        if depths != config.depths:  # before a model of any depth is made
            looks_like = identify(self.backbone)
            guess = f", it looks like {looks_like}" if looks_like else ""
            blocks = f"its stages have {_listed(depths)} blocks, not {_listed(config.depths)}"
            raise CheckpointError(f"{self.label}: does not fit{guess}: {blocks}")
        known = {"num_classes": self.num_classes, "in_chans": self.in_chans}
        if config.pos_embed_size is not None and "pos_embed" in self.backbone:
            known["pos_embed_size"] = 4 * self._size("pos_embed", 2, 4)
        try:
            return dataclasses.replace(config, **known)  # type: ignore[arg-type]
        except ValueError as error:
            raise CheckpointError(f"{self.label}: {error}") from None

    def _described(self) -> VMambaConfig:
        assert self.info is not None
        values = self.info.architecture
        try:
            return VMambaConfig.from_dict(values.get("backbone", values))  # within that of a detector or segmenter
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{info_path(self.label)}: {error}; correct it, or remove it to do without") from None

    def _size(self, name: str, axis: int, ndim: int) -> int:
        shape = tuple(self.backbone[name].shape)
        if len(shape) != ndim or not all(shape):
            raise CheckpointError(f"{self.label}: {name} has the impossible shape {shape}")
        return shape[axis]


def open_checkpoint(source: str | Path | Mapping[str, Any] | Checkpoint, weights: Weights = "auto") -> Checkpoint:
    """Read a checkpoint, recognise its entry names and translate them into ours. Every loader begins here.

    Args:
        source: Path of a ``.safetensors`` or ``torch.save`` file, a state dict, or what this has returned before.
        weights: See `vmamba.checkpoints.reading.read_checkpoint`.

    Raises:
        CheckpointError: If it cannot be read.
    """
    if isinstance(source, Checkpoint):
        return source
    label = label_of(source)
    content = source if isinstance(source, Mapping) else read_file(Path(source))
    entries = to_our_names(select_weights(content, weights, label))
    info = None if isinstance(source, Mapping) else read_info(source)
    return Checkpoint(label, entries, info or _info_of_run(content))


def _info_of_run(content: Mapping[str, Any]) -> ModelInfo | None:
    """Description of a checkpoint of a run: its recipe names the model and the changes to it."""
    recipe = content.get("recipe")
    variant = VARIANTS.get(str(recipe.get("model"))) if isinstance(recipe, Mapping) else None
    options = recipe.get("model_options") if isinstance(recipe, Mapping) else None
    if variant is None or not isinstance(options, Mapping):
        return None
    try:
        config = variant.config.override(options)
    except (ValueError, TypeError):  # somebody else's recipe
        return None
    return ModelInfo(architecture=dataclasses.asdict(config))


def identify(backbone: Mapping[str, Any]) -> str | None:
    """Name of the registered variant whose stem and stages have these entries (our names) and shapes."""
    depths, shapes = _depths(backbone), _shapes(backbone)
    for name, variant in VARIANTS.items():
        if variant.config.depths == depths:
            with torch.device("meta"):
                candidate = VMamba(variant.config)
            if shapes == _shapes(candidate.state_dict()):
                return name
    return None


def _shapes(backbone: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of stem and stages, whatever the channels of the images."""
    shapes = {n: tuple(entry.shape) for n, entry in backbone.items() if n.startswith(("stem.", "stages."))}
    if _FIRST_CONV in shapes:
        shapes[_FIRST_CONV] = shapes[_FIRST_CONV][:1] + shapes[_FIRST_CONV][2:]
    return shapes


def _depths(backbone: Mapping[str, Any]) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks = {(match[1], match[2]) for match in map(_BLOCK.match, backbone) if match}
    counts = Counter(stage for stage, _ in blocks)
    return tuple(counts[str(i)] for i in range(len(counts)))


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) <= 16 else f"{len(numbers)} times"
