"""Every layer of every model is one of PyTorch's own and is called as such: hooks of every kind see all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vmamba import VMamba, VMambaConfig
from vmamba.layers import SS2D

SMALL: dict[str, Any] = {"num_classes": 3, "dims": (8, 16), "depths": (1, 2), "drop_path_rate": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "vanilla": {"gate": True, "mlp_ratio": 0.0, "stem": "patchify", "downsample": "patch_merging", "d_state": 2},
    "cascade": {"scan": "cascade", "out_norm": "layernorm_dwconv3x3", "out_act": True},
    "convolutional": {"out_norm": "dwconv3x3", "downsample": "conv2x2", "patch_norm": False},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> VMamba:
    torch.manual_seed(0)
    return VMamba(VMambaConfig(**SMALL, **MODELS[request.param])).eval()


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """Every module without children."""
    return {name: module for name, module in model.named_modules() if not list(module.children())}


def test_layers_are_pytorchs_own(model: VMamba) -> None:
    for name, module in model.named_modules():
        if module._parameters and not isinstance(module, SS2D):
            assert type(module) in (nn.Linear, nn.Conv2d, nn.LayerNorm), name


HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_see_every_layer(model: VMamba, register: str) -> None:
    seen: set[str] = set()
    for name, module in leaves(model).items():
        getattr(module, register)(lambda *_, name=name: seen.add(name))
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    if "backward" in register:
        model(image).sum().backward()
    else:
        with torch.no_grad():
            model(image)
    assert seen == leaves(model).keys()


@pytest.mark.parametrize("grad", [True, False])
def test_a_replaced_forward_is_called(model: VMamba, grad: bool) -> None:
    seen: set[str] = set()

    def replace(name: str, module: nn.Module) -> None:
        original: Callable[..., Any] = module.forward
        module.forward = lambda *args: seen.add(name) or original(*args)  # type: ignore[method-assign]

    for name, module in leaves(model).items():
        replace(name, module)
    with torch.set_grad_enabled(grad):
        model(torch.randn(1, 3, 64, 64))
    assert seen == leaves(model).keys()


@torch.no_grad()
def test_a_global_hook_sees_every_layer(model: VMamba) -> None:
    seen = set()
    with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module)):
        model(torch.randn(1, 3, 64, 64))
    assert set(leaves(model).values()) <= seen
