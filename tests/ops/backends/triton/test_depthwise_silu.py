"""The fused depthwise convolution against PyTorch's in float64: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from support.golden import relative_error

pytest.importorskip("triton")

from vmamba.ops import depthwise_silu
from vmamba.ops.backends.triton import depthwise_silu as depthwise_kernels
from vmamba.ops.backends.triton.launch import INTERPRETED

operator = sys.modules["vmamba.ops.depthwise_silu"]  # the package has a function of that name
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(depthwise_kernels, "TILE", (4, 4, 1))


def operands(height: int, width: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * 10 + width)
    shapes = ((2, height, width, channels), (channels, 1, 3, 3), (channels,))
    return [torch.randn(shape, generator=generator).to(dtype).to(DEVICE).requires_grad_() for shape in shapes]


def expected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3])
    return F.silu(z).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("height", "width", "channels", "has_bias", "dtype"),
    [
        (1, 1, 3, True, torch.float32),
        (1, 7, 4, False, torch.float32),
        (5, 3, 6, True, torch.float32),
        (3, 2, 4, False, torch.bfloat16),
        (2, 3, 4, True, torch.float16),
    ],
)
def test_output_and_gradients(height: int, width: int, channels: int, has_bias: bool, dtype: torch.dtype) -> None:
    leaves = operands(height, width, channels, dtype)[: 2 + has_bias]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    dy = torch.randn(leaves[0].shape).to(DEVICE, dtype)
    y, truth = (
        f(*t, *([] if has_bias else [None])) for f, t in ((torch.ops.vmamba.depthwise_silu, leaves), (expected, exact))
    )
    got = [y, *torch.autograd.grad(y, leaves, dy)]
    for value, true in zip(got, [truth, *torch.autograd.grad(truth, exact, dy.double())], strict=True):
        assert value.dtype == dtype
        assert relative_error(value, true) < TOLERANCE[dtype]


def test_non_contiguous_tokens_and_mixed_storage() -> None:
    x, weight, bias = operands(2, 5, 3, torch.float32)
    x = x.detach().bfloat16().transpose(1, 2)
    y = torch.ops.vmamba.depthwise_silu(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected(x.double(), weight.double(), bias.double())) < 6e-3


def test_gradients_are_the_same_bit_for_bit() -> None:
    leaves = [t.detach() for t in operands(2, 5, 4, torch.bfloat16)]
    first, second = (depthwise_kernels.depthwise_silu_backward(leaves[0], *leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck() -> None:
    x, weight, bias = operands(2, 3, 4, torch.float32)
    torch.library.opcheck(torch.ops.vmamba.depthwise_silu.default, (x, weight, bias))
    leaves = [t.detach() for t in (x, x, weight)]
    torch.library.opcheck(torch.ops.vmamba.depthwise_silu_backward.default, (*leaves, None))


def test_flops_are_those_of_the_convolution() -> None:
    leaves = operands(3, 4, 6, torch.float32)
    counts = []
    for run in (torch.ops.vmamba.depthwise_silu, expected):
        with FlopCounterMode(display=False) as counter:
            run(*leaves)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.skipif(DEVICE != "cpu", reason="about CPUs")
def test_nothing_changes_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(depthwise_kernels, "depthwise_silu")
    leaves = operands(3, 4, 6, torch.float64)
    assert torch.equal(depthwise_silu(*leaves), expected(*leaves))
