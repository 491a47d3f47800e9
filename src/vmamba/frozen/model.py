"""`freeze`: a copy of a model for inference alone."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from vmamba.errors import FrozenError, OptionError
from vmamba.frozen.block import FrozenBlock
from vmamba.frozen.comparison import Images, compare
from vmamba.frozen.downsample import FrozenConvDownsample, FrozenPatchMerging
from vmamba.frozen.immutable import Immutable, lock
from vmamba.frozen.layer import FusedLayer, SealedLayer
from vmamba.frozen.products import FrozenConvNormReLU, PackedLayer
from vmamba.frozen.stem import FrozenStem
from vmamba.layers import Block, ConvDownsample, MapStem, PatchMerging, Stem
from vmamba.layers.conv_norm_relu import ConvNormReLU
from vmamba.ops import PRECISIONS
from vmamba.ops.packed import can_pack

M = TypeVar("M", bound=nn.Module)

#: Layers that have a fused form, and that.
FORMS: dict[type[nn.Module], type[FusedLayer]] = {
    Block: FrozenBlock,
    ConvDownsample: FrozenConvDownsample,
    ConvNormReLU: FrozenConvNormReLU,
    PatchMerging: FrozenPatchMerging,
    Stem: FrozenStem,
    MapStem: FrozenStem,
}


def freeze(model: M, precision: str = "float32", *, images: Images | None = None) -> M:
    """A copy of a model for inference, in evaluation mode: the same results, computed by operators of several layers.

    Nothing of it can be changed: weights are read-only; loading others, moving or converting it, and setting attributes
    raise; ``train`` does nothing. It has no gradients. Everything else stays: its type, methods and configuration, its
    state dict (which holds copies), pickling. ``print(frozen)`` says what was done.

    Args:
        model: A VMamba of any form (classifier, features, detector, segmenter, or one `vmamba.layers.Block`), on the
            device and in the dtype in which it shall run. It is left as it is.
        precision: Of the matrix products of a float32 model on a CPU: ``"float32"``; ``"bfloat16"`` (errors near
            5e-3); ``"int8"`` (weights by output channel, activations by token as they come). LayerNorms, states of
            scans and residuals are float32, as are the results. Slow where the processor has no instructions for it.
        images: Images to compare the result with the model on: inputs (N, 3, H, W), batches of them, or a folder.
            ``print(frozen)`` then says the error. Nothing is calibrated by them: every token has its own scale.

    Returns:
        An instance of a subclass of the model's class.

    Raises:
        OptionError: For an unknown precision.
        ImageError: If the images cannot be read.
        FrozenError: If a layer has a hook, a replaced ``forward`` or a parametrization, which would be lost, or if the
            model is not one for that precision.

    Example:
        >>> import torch
        >>> import vmamba
        >>> model = vmamba.create_model("vmamba_pico").eval()
        >>> image = torch.rand(1, 3, 64, 64)
        >>> torch.testing.assert_close(vmamba.freeze(model)(image), model(image))
    """
    if precision not in PRECISIONS:
        raise OptionError(f"freeze: unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if isinstance(model, Immutable):
        return model
    if precision != "float32":
        _refuse_precision(model, precision)
    for name, module in model.named_modules():
        _refuse_touched(name or "the model", module)
    done: Counter[str] = Counter()
    frozen = _frozen_form(copy.deepcopy(model).eval().requires_grad_(False), precision, done)
    for module in frozen.modules():
        lock(module)
    frozen.__dict__["_done"] = done
    frozen.__dict__["_precision"] = precision
    if images is not None:
        original = copy.deepcopy(model).eval() if model.training else model
        frozen.__dict__["_comparison"] = compare(original, frozen, images)
    return cast(M, frozen)


def _refuse_precision(model: nn.Module, precision: str) -> None:
    if (problem := can_pack()) is not None:
        raise FrozenError(f"freeze: {precision} needs the compiled CPU kernels: {problem}")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise FrozenError(
                f"freeze: {precision} is for float32 models on a CPU, and {name} is {tensor.dtype} on {tensor.device}; "
                "elsewhere convert the model and freeze it in its own precision"
            )


def _refuse_touched(name: str, module: nn.Module) -> None:
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    touched = [hook.strip("_").replace("_", " ") for hook in hooks if getattr(module, hook)]
    touched += ["a replaced forward"] if "forward" in module.__dict__ else []
    touched += ["parametrizations"] if is_parametrized(module) else []
    if touched:
        raise FrozenError(f"freeze: {name} has {' and '.join(touched)}; remove or bake in what was put on it first")


def _frozen_form(module: nn.Module, precision: str, done: Counter[str]) -> nn.Module:
    """The module with every layer fused, where it has such a form, or sealed; `done` counts both."""
    name = type(module).__name__
    if type(module) in FORMS:
        form = FORMS[type(module)]
        if (reason := form.refusal(module)) is not None:
            done[f"{name}, called: {reason}"] += 1
            return SealedLayer(module)
        fused = form(module, precision)
        done[f"{name}, {fused.summary}"] += 1
        return fused
    children = list(module.named_children())
    if not children and (module._parameters or module._buffers):
        packed = PackedLayer.accepts(module)
        done[f"{name}, {'packed' if packed else 'called'}"] += 1
        return PackedLayer(cast(Any, module), precision) if packed else SealedLayer(module)
    for key, child in children:
        setattr(module, key, _frozen_form(child, precision, done))
    return module
