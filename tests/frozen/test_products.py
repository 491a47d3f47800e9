"""Single layers that are a product: the same results with packed weights, and called where these are not for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vmamba
from support.golden import relative_error
from vmamba.errors import FrozenError
from vmamba.frozen.products import FrozenConvNormReLU, PackedLayer
from vmamba.layers.conv_norm_relu import ConvNormReLU

TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2, "int8": 3e-2}

LAYERS: dict[str, tuple[nn.Module, Tensor]] = {
    "linear": (nn.Linear(24, 7), torch.ones(5, 24)),
    "linear, no bias, tokens": (nn.Linear(24, 7, bias=False), torch.ones(2, 3, 5, 24)),
    "1×1": (nn.Conv2d(24, 7, 1), torch.ones(2, 24, 3, 5)),
    "3×3": (nn.Conv2d(24, 7, 3, padding=1, bias=False), torch.ones(2, 24, 3, 5)),
    "3×3, stride 2, no padding": (nn.Conv2d(24, 7, 3, stride=2), torch.ones(2, 24, 8, 5)),
    "5×5": (nn.Conv2d(3, 7, 5, padding=2), torch.ones(2, 3, 8, 5)),
    "transposed": (nn.ConvTranspose2d(24, 7, 2, 2), torch.ones(2, 24, 3, 5)),
    "transposed 3, no bias": (nn.ConvTranspose2d(24, 7, 3, 3, bias=False), torch.ones(2, 24, 3, 5)),
}

OTHERS: dict[str, tuple[nn.Module, Tensor]] = {
    "groups": (nn.Conv2d(24, 8, 3, groups=2), torch.ones(2, 24, 4, 5)),
    "dilation": (nn.Conv2d(24, 8, 3, dilation=2), torch.ones(2, 24, 8, 9)),
    "padding by name": (nn.Conv2d(24, 8, 3, padding="same"), torch.ones(2, 24, 4, 5)),
    "reflection": (nn.Conv2d(24, 8, 3, padding=1, padding_mode="reflect"), torch.ones(2, 24, 4, 5)),
    "not square": (nn.Conv2d(24, 8, (3, 1)), torch.ones(2, 24, 4, 5)),
    "two strides": (nn.Conv2d(24, 8, 3, stride=(1, 2)), torch.ones(2, 24, 4, 5)),
    "one dimension": (nn.Conv1d(24, 8, 3), torch.ones(2, 24, 4)),
    "transposed, overlapping": (nn.ConvTranspose2d(24, 7, 3, 2), torch.ones(2, 24, 3, 5)),
    "transposed, cut": (nn.ConvTranspose2d(24, 7, 2, 2, padding=1), torch.ones(2, 24, 3, 5)),
    "float64": (nn.Linear(24, 7).double(), torch.ones(5, 24).double()),
}


def noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype)


@torch.no_grad()
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", LAYERS)
def test_products(name: str, precision: str) -> None:
    layer, x = LAYERS[name]
    frozen = vmamba.freeze(nn.Sequential(layer), precision)
    assert isinstance(frozen[0], PackedLayer)
    assert f"1 × {type(layer).__name__}, packed" in str(frozen)
    x = noise(x)
    expected = layer.double()(x.double())  # the definition
    layer.float()
    inputs = [x] if x.ndim != 4 else [x, x.contiguous(memory_format=torch.channels_last)]
    for one in inputs:
        assert relative_error(frozen(one), expected) < TOLERANCE[precision]
    assert frozen(x[:0]).shape == (0, *expected.shape[1:])
    if x.ndim == 4:
        assert frozen(x[0]).shape == expected[0].shape  # without a batch
    assert torch.equal(frozen[0].weight, layer.weight)


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_others_are_called(name: str) -> None:
    layer, x = OTHERS[name]
    frozen = vmamba.freeze(nn.Sequential(layer))
    assert f"1 × {type(layer).__name__}, called" in str(frozen)
    assert torch.equal(frozen(noise(x)), layer(noise(x)))


@torch.no_grad()
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_batch_norm_is_in_the_weights(kernel_size: int, precision: str) -> None:
    torch.manual_seed(0)
    layer = ConvNormReLU(24, 7, kernel_size)
    norm = layer.batch_norm
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = torch.randn(2, 24, 5, 6)
    expected = layer.double().eval()(x.double())
    frozen: Any = vmamba.freeze(layer.float().eval(), precision)
    assert isinstance(frozen, FrozenConvNormReLU)
    assert (expected == 0).any()
    assert relative_error(frozen(x), expected) < TOLERANCE[precision]
    assert list(frozen.state_dict()) == list(layer.state_dict())
    assert dict(frozen.named_parameters()).keys() == dict(layer.named_parameters()).keys()
    with torch.autocast("cpu", torch.bfloat16):  # called
        assert relative_error(frozen(x), expected) < 2e-2


def test_batch_norm_of_the_batch_is_called() -> None:
    layer = ConvNormReLU(8, 7, 1).eval()
    layer.batch_norm = nn.BatchNorm2d(7, track_running_stats=False).eval()
    frozen, x = vmamba.freeze(layer), torch.randn(2, 8, 5, 6)
    assert "1 × ConvNormReLU, called: its convolution or batch norm has other options" in str(frozen)
    with torch.no_grad():
        assert torch.equal(frozen(x), layer(x))


def test_there_is_no_gradient() -> None:
    for layer, x in ((nn.Linear(8, 7), torch.randn(2, 8)), (ConvNormReLU(8, 7, 1), torch.randn(2, 8, 3, 3))):
        with pytest.raises(FrozenError, match="a frozen layer has no gradient"):
            vmamba.freeze(layer.eval())(x.requires_grad_())
