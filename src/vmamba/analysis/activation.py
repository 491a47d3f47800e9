"""Activation maps: of a stage or block for one position, and of a class."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import MissingPackageError, OptionError
from vmamba.model.backbone import Block


@torch.no_grad()
def similarity_map(model: nn.Module, layer: str, image: Tensor, position: tuple[int, int]) -> Tensor:
    """Cosine similarity of a layer's output at one position with its output everywhere.

    Args:
        model: Any model.
        layer: Name of a module whose output is a map: a stage, a block, a convolution.
        image: (1, C, H, W), preprocessed.
        position: (row, column) in the layer's map.

    Returns:
        (h, w) in [-1, 1].

    Raises:
        OptionError: For an unknown layer, one whose output is not a map, or a position outside of it.
    """
    _, features = _run(model, layer, image)
    return F.cosine_similarity(features, _at(features, position)[:, None, None], dim=0)


def dependence_map(model: nn.Module, layer: str, image: Tensor, position: tuple[int, int]) -> Tensor:
    """Dependence of a layer's output at one position on every position of the layer's input.

    The magnitude of the gradient of the channel sum, summed over the input's channels. Unlike the rows of attention it
    includes everything in the layer: convolution, gate, MLP, all blocks of a stage.

    Args:
        model: Any model.
        layer: Name of a module from map to map.
        image: (1, C, H, W), preprocessed.
        position: (row, column) in the layer's output.

    Returns:
        (h, w) of the layer's input; not negative.

    Raises:
        OptionError: As `similarity_map`.
    """
    inputs, features = _run(model, layer, image)
    (gradient,) = torch.autograd.grad(_at(features, position).sum(), inputs)
    return _channels_first(model.get_submodule(layer), gradient).abs().sum(0)


def class_activation(
    model: nn.Module, image: Tensor, layer: str | None = None, target: int | None = None
) -> tuple[Tensor, int]:
    """Grad-CAM: where in the image the evidence for a class is (Selvaraju et al., ICCV 2017), by the library grad-cam.

    Args:
        model: A classifier.
        image: (1, C, H, W), preprocessed.
        layer: Name of a module whose output is a map; the last stage where the model knows its own.
        target: Class; the most probable one where not given.

    Returns:
        (H, W) of the image, in [0, 1]; the class.

    Raises:
        MissingPackageError: If grad-cam is not installed.
        OptionError: For an unknown layer or class.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        raise MissingPackageError("grad-cam", "analysis") from None
    module = _submodule(model, last_stage(model) if layer is None else layer)
    with torch.no_grad():
        logits = model(image)
    if target is None:
        target = int(logits[0].argmax())
    if not 0 <= target < logits.shape[1]:
        raise OptionError(f"class {target} is not among the model's {logits.shape[1]}")
    last = isinstance(module, Block)  # tokens (B, H, W, C)
    with GradCAM(model, [module], reshape_transform=(lambda t: t.permute(0, 3, 1, 2)) if last else None) as cam:
        maps = cam(image, [ClassifierOutputTarget(target)])
    return torch.from_numpy(maps[0]), target


def last_stage(model: nn.Module) -> str:
    """Name of the module that gives the last feature map, as timm's models declare it.

    Raises:
        OptionError: If the model declares none.
    """
    info = cast("list[dict[str, Any]] | None", getattr(model, "feature_info", None))
    if not info:
        raise OptionError(f"{type(model).__name__} does not say which layer is its last map; name one with --layer")
    return str(info[-1]["module"])


def _submodule(model: nn.Module, layer: str) -> nn.Module:
    try:
        return model.get_submodule(layer)
    except AttributeError:
        known = ", ".join(name for name, _ in model.named_children())
        raise OptionError(f"no layer {layer!r} in {type(model).__name__}, which has {known}") from None


def _run(model: nn.Module, layer: str, image: Tensor) -> tuple[Tensor, Tensor]:
    """Input of a layer (a leaf that takes gradients) and its output as (C, h, w), for one image."""
    module = _submodule(model, layer)
    passed: list[Tensor] = []

    def detach(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        passed.append(arguments[0].detach().requires_grad_())
        return (passed[0], *arguments[1:])

    hooks = [
        module.register_forward_pre_hook(detach),
        module.register_forward_hook(lambda _, arguments, output: passed.append(output)),
    ]
    try:
        model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    if len(passed) != 2 or passed[1].ndim != 4 or len(image) != 1:
        raise OptionError(f"the output of {layer!r} for one image is not a map (1, C, h, w)")
    return passed[0], _channels_first(module, passed[1])


def _channels_first(module: nn.Module, t: Tensor) -> Tensor:
    """(C, h, w) of what goes in or out of a module; our blocks have tokens (1, h, w, C)."""
    return t[0].permute(2, 0, 1) if isinstance(module, Block) else t[0]


def _at(features: Tensor, position: tuple[int, int]) -> Tensor:
    height, width = features.shape[1:]
    if not (0 <= position[0] < height and 0 <= position[1] < width):
        raise OptionError(f"position {position} is outside the map of {height}×{width}")
    return features[:, position[0], position[1]]
