"""The fused depthwise convolution against PyTorch's in float64: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from support.golden import relative_error

pytest.importorskip("triton")

from vmamba.ops import depthwise_silu
from vmamba.ops.backends.triton import depthwise_silu as depthwise_kernels
from vmamba.ops.backends.triton.launch import INTERPRETED

operator = sys.modules["vmamba.ops.depthwise_silu"]  # the package has a function of that name
DEVICE = "cpu" if INTERPRETED else "cuda"
#: The interpreter rounds to bfloat16 by cutting, twice for the gradient of x.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def operands(height: int, width: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(height * 10 + width)
    shapes = ((2, height, width, channels), (channels, 1, 3, 3), (channels,))
    return [torch.randn(shape, generator=generator).to(dtype).to(DEVICE).requires_grad_() for shape in shapes]


def expected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3])
    return F.silu(z).permute(0, 2, 3, 1)


def check_output_and_gradients(leaves: list[Tensor]) -> None:
    absent = [None] * (3 - len(leaves))
    exact = [t.detach().double().requires_grad_() for t in leaves]
    dy = torch.randn(leaves[0].shape).to(leaves[0])
    y, truth = torch.ops.vmamba.depthwise_silu(*leaves, *absent), expected(*exact, *absent)
    got = [y, *torch.autograd.grad(y, leaves, dy)]
    for value, true in zip(got, [truth, *torch.autograd.grad(truth, exact, dy.double())], strict=True):
        assert value.dtype == leaves[0].dtype
        assert relative_error(value, true) < TOLERANCE[value.dtype]


@pytest.mark.parametrize(
    ("height", "width", "channels", "has_bias", "dtype"),
    [
        (1, 1, 1, True, torch.float32),
        (1, 7, 4, False, torch.float32),
        (3, 5, 6, True, torch.float32),
        (16, 1, 3, True, torch.float32),  # more rows than a strip has
        (7, 7, 17, True, torch.bfloat16),
        (2, 19, 33, False, torch.float32),  # more columns and channels than a program holds
        (2, 3, 4, True, torch.float16),
    ],
)
def test_output_and_gradients(height: int, width: int, channels: int, has_bias: bool, dtype: torch.dtype) -> None:
    check_output_and_gradients(operands(height, width, channels, dtype)[: 2 + has_bias])


def test_programs_walk_through_several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise_kernels, "ROWS", 3)
    monkeypatch.setattr(depthwise_kernels, "PROGRAMS", 4)
    monkeypatch.setattr(depthwise_kernels, "BACKWARD_TILE", (4, 4, 1, 2))
    check_output_and_gradients(operands(7, 6, 7, torch.float32))  # 9 items for each of 2 blocks of channels


def test_no_images() -> None:
    x, weight, bias = operands(2, 3, 4, torch.float32)
    y = torch.ops.vmamba.depthwise_silu(x[:0], weight, bias)
    assert y.shape == (0, 2, 3, 4)
    assert not any(gradient.any() for gradient in torch.autograd.grad(y.sum(), (weight, bias)))


def test_non_contiguous_tokens_and_mixed_storage() -> None:
    x, weight, bias = operands(2, 5, 3, torch.float32)
    x = x.detach().bfloat16().transpose(1, 2)
    y = torch.ops.vmamba.depthwise_silu(x, weight, bias)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected(x.double(), weight.double(), bias.double())) < 1e-2


def test_gradients_are_the_same_bit_for_bit() -> None:
    leaves = [t.detach() for t in operands(2, 5, 4, torch.bfloat16)]
    first, second = (depthwise_kernels.depthwise_silu_backward(leaves[0], *leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def scalar(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *operands: (run(*operands) ** 2).sum()


def close(got: Any, truth: Any) -> None:
    for value, true in zip(tree_leaves(got), tree_leaves(truth), strict=True):
        assert true.count_nonzero() > 0
        assert relative_error(value, true) < 1e-5


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # loads forward mode's own formulas
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_derivatives_of_every_kind() -> None:
    leaves = [t.detach() for t in operands(3, 4, 5, torch.float32)]
    exact = [t.double() for t in leaves]
    tangents = [torch.randn_like(t) for t in leaves]
    ours = torch.ops.vmamba.depthwise_silu
    everything = (0, 1, 2)
    for i, tangent in enumerate(tangents):  # through each operand alone: none is taken for zero
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, tangent) if i == k else t for k, t in enumerate(leaves)]
            got = forward_ad.unpack_dual(ours(*duals)).tangent
        only = [t.double() * (i == k) for k, t in enumerate(tangents)]
        close(got, jvp(expected, tuple(exact), tuple(only))[1])
    close(grad(scalar(ours), everything)(*leaves), grad(scalar(expected), everything)(*exact))

    def along(run: Callable[..., Tensor], t: list[Tensor], v: list[Tensor]) -> Any:
        gradients = torch.autograd.grad(scalar(run)(*t), t, create_graph=True)
        return torch.autograd.grad(sum((g * w).sum() for g, w in zip(gradients, v, strict=True)), t)

    tracked, true = ([t.clone().requires_grad_() for t in values] for values in (leaves, exact))
    close(along(ours, tracked, tangents), along(expected, true, [t.double() for t in tangents]))
    forward_over_reverse = jvp(grad(scalar(ours), everything), tuple(leaves), tuple(tangents))
    both = jvp(grad(scalar(expected), everything), tuple(exact), tuple(t.double() for t in tangents))
    close(forward_over_reverse, both)
    per_sample = vmap(grad(lambda w, x: scalar(ours)(x[None], w, leaves[2])), (None, 0))
    truth = vmap(grad(lambda w, x: scalar(expected)(x[None], w, exact[2])), (None, 0))
    close(per_sample(leaves[1], leaves[0]), truth(exact[1], exact[0]))


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
