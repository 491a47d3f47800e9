"""Layers are computed by a faster kernel only where nobody can tell; everybody else finds them called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vmamba.layers.call import call

X = torch.randn(2, 3, 4, 8)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that ran in place of layers."""
    ran: list[str] = []
    module = importlib.import_module("vmamba.layers.call")
    for name in ("pointwise", "convolution"):
        original = getattr(module, name)
        spy = lambda *args, name=name, original=original: ran.append(name) or original(*args)  # noqa: E731
        monkeypatch.setattr(module, name, spy)
    return ran


def test_plain_layers_take_the_faster_way(kernels: list[str]) -> None:
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for layer, x in ((nn.Linear(8, 6), X), (nn.Conv2d(8, 6, 3, 2, 1), X.permute(0, 3, 1, 2))):
                torch.testing.assert_close(call(layer, x), layer(x), rtol=1e-4, atol=1e-5)
    assert kernels == ["pointwise", "convolution"] * 2


class Adapter(nn.Linear):
    """A subclass that adds to the output, as low-rank adapters do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def replace_weight(layer: nn.Module) -> None:
    del layer._parameters["weight"]
    layer.weight = torch.randn(6, 8)


def replace_forward(layer: nn.Module) -> None:
    original = layer.forward
    layer.forward = lambda x: original(x) + 1  # type: ignore[method-assign]


def hooked(register: str, *arguments: Any, **options: Any) -> Callable[[nn.Module], object]:
    return lambda layer: getattr(layer, register)(lambda *_, **__: None, *arguments, **options)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "forward hook": hooked("register_forward_hook"),
    "forward hook, always called": hooked("register_forward_hook", always_call=True),
    "forward pre-hook": hooked("register_forward_pre_hook"),
    "full backward hook": hooked("register_full_backward_hook"),
    "full backward pre-hook": hooked("register_full_backward_pre_hook"),
    "state-dict pre-hook": hooked("register_state_dict_pre_hook"),
    "state-dict post-hook": hooked("register_state_dict_post_hook"),
    "load pre-hook": hooked("register_load_state_dict_pre_hook"),
    "load post-hook": hooked("register_load_state_dict_post_hook"),
    "replaced forward": replace_forward,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "weight that is no parameter": replace_weight,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_layers_are_called(name: str, kernels: list[str]) -> None:
    layer = nn.Linear(8, 6).eval()  # spectral norm iterates in training
    CHANGES[name](layer)
    assert torch.equal(call(layer, X), layer(X))
    assert kernels == []


def test_layers_of_other_types_are_called(kernels: list[str]) -> None:
    for layer, x in (
        (Adapter(8, 6), X),
        (nn.LayerNorm(8), X),
        (nn.Linear(8, 6), X.flatten(0, 2)),
        (nn.Conv2d(8, 6, 3, groups=2), X.permute(0, 3, 1, 2)),
        (nn.Conv2d(8, 6, 3, padding="same", padding_mode="reflect"), X.permute(0, 3, 1, 2)),
        (nn.Linear(8, 6, device="meta"), X.to("meta")),
    ):
        assert call(layer, x).shape == layer(x).shape
    assert kernels == []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, in forward-mode AD
def test_observers_find_the_layer_called(kernels: list[str]) -> None:
    layer, seen = nn.Linear(8, 6), []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        with Functions():
            call(layer, X)
        with Operators():
            call(layer, X)
        assert torch.nn.functional.linear in seen
        assert torch.ops.aten.addmm in seen
        with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
            call(layer, X)
        assert layer in seen
        batched = torch.func.vmap(lambda x: call(layer, x))(X[None])
        torch.testing.assert_close(batched[0], layer(X))
        tangent = torch.func.jvp(lambda x: call(layer, x), (X,), (torch.ones_like(X),))[1]
        torch.testing.assert_close(tangent, layer.weight.sum(1).expand_as(tangent), rtol=1e-4, atol=1e-5)
        called = torch.func.functional_call(Calling(layer), {"layer.weight": torch.zeros(6, 8)}, (X,))
        assert torch.equal(called, layer.bias.expand_as(called))
    assert kernels == []


class Calling(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return call(self.layer, x)
