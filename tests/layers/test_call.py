"""Layers are computed by a faster kernel only where nobody can tell; everybody else finds them called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from support.golden import relative_error
from vmamba.layers import SS2D
from vmamba.layers.call import call, convolve

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


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there in Triton's interpreter


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tokens that the fused convolution took, as on a GPU."""
    kernels = pytest.importorskip("vmamba.ops.backends.triton.depthwise_silu")
    ran: list[tuple[int, ...]] = []
    original = kernels.depthwise_silu
    monkeypatch.setattr(kernels, "depthwise_silu", lambda *args: ran.append(tuple(args[0].shape)) or original(*args))
    for module in ("vmamba.layers.call", "vmamba.ops.depthwise_silu"):
        monkeypatch.setattr(importlib.import_module(module), "on_gpu", lambda x: True)
    return ran


def depthwise(channels: int = 6, kernel: int = 3, **options: Any) -> nn.Conv2d:
    options = {"padding": kernel // 2, "groups": channels, "bias": False} | options
    return nn.Conv2d(channels, channels, kernel, **options).to(DEVICE)


@pytest.mark.parametrize("bias", [True, False])
def test_convolution_and_silu_are_one_pass_on_a_gpu(bias: bool, fused: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    conv, x = depthwise(bias=bias), torch.randn(2, 5, 4, 6, device=DEVICE, requires_grad=True)
    y = convolve(conv, nn.SiLU(), x)
    dy, leaves = torch.randn_like(y), (x, *conv.parameters())
    exact = [t.detach().double().requires_grad_() for t in leaves]
    offset = exact[2] if bias else None
    truth = F.silu(F.conv2d(exact[0].permute(0, 3, 1, 2), exact[1], offset, padding=1, groups=6)).permute(0, 2, 3, 1)
    got = [y, *torch.autograd.grad(y, leaves, dy)]
    for value, true in zip(got, [truth, *torch.autograd.grad(truth, exact, dy.double())], strict=True):
        assert relative_error(value, true) < 1e-5
    with torch.no_grad():
        assert torch.equal(convolve(conv, nn.SiLU(), x), y)
        with torch.autocast(DEVICE, torch.bfloat16):
            assert convolve(conv, nn.SiLU(), x).dtype == torch.bfloat16
    assert fused == [(2, 5, 4, 6)] * 3


@pytest.mark.parametrize("gate", [True, False])
def test_the_layer_trains_by_the_fused_convolution(gate: bool, fused: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    layer = SS2D(6, gate=gate, conv_bias=True).to(DEVICE)
    x, leaves = torch.randn(1, 4, 5, 6, device=DEVICE), list(layer.parameters())
    got = torch.autograd.grad(layer(x).square().sum(), leaves)
    assert fused == [(1, 4, 5, 6)]
    layer.act.register_forward_hook(lambda *_: None)
    called = torch.autograd.grad(layer(x).square().sum(), leaves)
    assert len(fused) == 1
    assert max(relative_error(a, b.double()) for a, b in zip(got, called, strict=True)) < 1e-4


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "weight that is no parameter"])
def test_changed_convolutions_and_activations_are_called(name: str, fused: list[tuple[int, ...]]) -> None:
    x = torch.randn(2, 3, 4, 6, device=DEVICE)
    changed = [(depthwise().eval(), nn.SiLU())]
    CHANGES[name](changed[0][0])
    if "hook" in name or "forward" in name:
        changed.append((depthwise(), nn.SiLU()))
        CHANGES[name](changed[1][1])
    for conv, act in changed:
        assert torch.equal(convolve(conv, act, x), act(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
    assert fused == []


def test_other_convolutions_and_activations_are_called(fused: list[tuple[int, ...]]) -> None:
    x, silu = torch.randn(2, 5, 6, 4, device=DEVICE), nn.SiLU()
    others = [depthwise(4, 5), depthwise(4, stride=2), depthwise(4, padding=0), depthwise(4, padding=2, dilation=2)]
    others += [depthwise(4, groups=2), depthwise(4, padding_mode="circular"), depthwise(4, padding="same")]
    for conv, act in [*((conv, silu) for conv in others), (nn.Identity(), silu), (depthwise(4), nn.GELU())]:
        assert torch.equal(convolve(conv, act, x), act(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        convolve(depthwise(4), silu, x.bfloat16())
    conv = depthwise(4)
    with FlopCounterMode(display=False) as counter:
        convolve(conv, silu, x)
    assert counter.get_total_flops() > 0
    assert fused == []
