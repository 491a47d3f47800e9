"""The models that analyses compare: ours by name or checkpoint, any of timm's, and exported files."""

from __future__ import annotations

import difflib
from pathlib import Path

import timm
import torch
from torch import nn

from vmamba.errors import OptionError
from vmamba.frozen import freeze
from vmamba.model.variants import VARIANTS
from vmamba.ort import OnnxModel
from vmamba.zoo import create_model, model_from_checkpoint


def load_model(
    name: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    image_size: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A model in evaluation mode; by default with random weights.

    Args:
        name: One of `vmamba.list_models` or ``timm.list_models``, or an exported ``.onnx`` file; may be None where the
            checkpoint says it. One of ours with `` frozen int8`` behind it, or another precision, is frozen.
        checkpoint: Weights of one of our models, adapted to RGB images; see `vmamba.zoo.model_from_checkpoint`.
        pretrained: Load the published weights, downloaded once.
        image_size: (H, W) for models that are built for one size (DeiT, Swin); others take any.
        device: Of the parameters; ``"meta"`` for shapes alone.

    Raises:
        FrozenError: If the model cannot be frozen in that precision.
        OptionError: For an unknown name, published weights that do not exist, or an exported file on another device.
        ExportError: If an exported file cannot be loaded.
    """
    if checkpoint is not None:
        return model_from_checkpoint(checkpoint, name, in_chans=3).to(device).eval()
    if name is None:
        raise OptionError("name a model or give a checkpoint")
    if name.endswith(".onnx"):
        if torch.device(device).type != "cpu":
            raise OptionError(f"{name}: exported files run on the CPU, not on {device}")
        return OnnxModel(name).eval()
    variant, frozen, precision = name.partition(" frozen ")
    if variant in VARIANTS:
        with torch.device(device):
            model = create_model(variant, pretrained=pretrained).to(device).eval()
        return freeze(model, precision) if frozen else model
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise OptionError(
            f"unknown model {name!r}; " + (f"do you mean {near[0]!r}?" if near else "see timm.list_models()")
        )
    settings = timm.get_pretrained_cfg(name, allow_unregistered=False)
    options = {"img_size": image_size} if image_size and settings and settings.fixed_input_size else {}
    try:
        with torch.device(device):
            return timm.create_model(name, pretrained=pretrained, **options).to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"cannot create {name}: {' '.join(str(error).split())}") from None
