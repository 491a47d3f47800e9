"""`freeze`: a copy of a model for inference alone."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TypeVar, cast

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from vmamba.errors import FrozenError
from vmamba.frozen.block import FrozenBlock
from vmamba.frozen.downsample import FrozenConvDownsample, FrozenPatchMerging
from vmamba.frozen.immutable import Immutable, lock
from vmamba.frozen.layer import FusedLayer, SealedLayer
from vmamba.layers import Block, ConvDownsample, PatchMerging

M = TypeVar("M", bound=nn.Module)

#: Layers that have a fused form, and that.
FORMS: dict[type[nn.Module], type[FusedLayer]] = {
    Block: FrozenBlock,
    ConvDownsample: FrozenConvDownsample,
    PatchMerging: FrozenPatchMerging,
}


def freeze(model: M) -> M:
    """A copy of a model for inference, in evaluation mode: the same results, computed by operators of several layers.

    Nothing of it can be changed: weights are read-only; loading others, moving or converting it, and setting attributes
    raise; ``train`` does nothing. It has no gradients. Everything else stays: its type, methods and configuration, its
    state dict (which holds copies), pickling. ``print(frozen)`` says what was done.

    Args:
        model: A VMamba of any form (classifier, features, detector, segmenter, or one `vmamba.layers.Block`), on the
            device and in the dtype in which it shall run. It is left as it is.

    Returns:
        An instance of a subclass of the model's class.

    Raises:
        FrozenError: If a layer has a hook, a replaced ``forward`` or a parametrization, which would be lost.
    """
    if isinstance(model, Immutable):
        return model
    for name, module in model.named_modules():
        _refuse_touched(name or "the model", module)
    done: Counter[str] = Counter()
    frozen = _frozen_form(copy.deepcopy(model).eval().requires_grad_(False), done)
    for module in frozen.modules():
        lock(module)
    frozen.__dict__["_done"] = done
    return cast(M, frozen)


def _refuse_touched(name: str, module: nn.Module) -> None:
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    touched = [hook.strip("_").replace("_", " ") for hook in hooks if getattr(module, hook)]
    touched += ["a replaced forward"] if "forward" in module.__dict__ else []
    touched += ["parametrizations"] if is_parametrized(module) else []
    if touched:
        raise FrozenError(f"freeze: {name} has {' and '.join(touched)}; remove or bake in what was put on it first")


def _frozen_form(module: nn.Module, done: Counter[str]) -> nn.Module:
    """The module with every layer fused, where it has such a form, or sealed; `done` counts the former."""
    if type(module) in FORMS:
        form, name = FORMS[type(module)], type(module).__name__
        reason = form.refusal(module)
        done[f"{name}, called: {reason}" if reason else f"{name}, fused"] += 1
        return SealedLayer(module) if reason else form(module)
    children = list(module.named_children())
    if not children and (module._parameters or module._buffers):
        return SealedLayer(module)
    for name, child in children:
        setattr(module, name, _frozen_form(child, done))
    return module
