"""The linear map of tokens against torch's own, however it is computed."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vmamba.ops import pointwise, pointwise_branch, use_backend


@pytest.fixture(params=[(2, 5, 3), (1, 1, 1), (1, 1, 7), (3, 1, 1)], ids=str)
def operands(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(*request.param, 8), torch.randn(6, 8), torch.randn(6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("grad", [True, False])
def test_values(operands: tuple[Tensor, Tensor, Tensor], grad: bool, dtype: torch.dtype, bias: bool) -> None:
    x, weight, b = (t.to(dtype) for t in operands)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(pointwise(x, weight, b if bias else None), F.linear(x, weight, b if bias else None))


def test_gradients(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    leaves = [t.requires_grad_() for t in operands]
    expected = torch.autograd.grad(F.linear(*leaves).sin().sum(), leaves)
    for got, truth in zip(torch.autograd.grad(pointwise(*leaves).sin().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    leaves = [t.requires_grad_() for t in operands]

    def second(linear: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(linear(*leaves).sin().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for got, truth in zip(second(pointwise), second(F.linear), strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-3, atol=1e-3)


def test_frozen_weights_have_no_gradient(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias = operands
    y = pointwise(x.requires_grad_(), weight, bias)
    (got,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(got, weight.sum(0).expand_as(x), rtol=1e-4, atol=1e-5)


def test_strided_tokens() -> None:
    x, weight = torch.randn(2, 8, 5, 3).permute(0, 2, 3, 1), torch.randn(6, 8)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(pointwise(x, weight, None), F.linear(x, weight))


def test_autocast_decides_the_dtype() -> None:
    x, weight = torch.randn(2, 5, 3, 8), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert pointwise(x, weight, None).dtype == torch.bfloat16


def test_flops_and_compilation() -> None:
    x, weight, bias = torch.randn(2, 5, 3, 8), torch.randn(6, 8), torch.randn(6)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            expected = pointwise(x, weight, bias)
        assert counter.get_total_flops() == 2 * 2 * 5 * 3 * 8 * 6
        with torch.set_grad_enabled(grad):
            compiled = torch.compile(pointwise, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x, weight, bias), expected)


def branch_operands() -> tuple[Tensor, list[Tensor]]:
    """Operands of a branch with two linear maps, the second without a bias, in float64."""
    torch.manual_seed(0)
    shapes = [(8,), (8,), (32, 8), (32,), (6, 32), (2, 5, 3, 6)]
    return torch.randn(2, 5, 3, 8, dtype=torch.float64), [torch.randn(s, dtype=torch.float64) for s in shapes]


def branch(x: Tensor, rest: list[Tensor], residual: bool = True) -> Tensor:
    norm_weight, norm_bias, weight1, bias1, weight2, added = rest
    return pointwise_branch(
        x, norm_weight, norm_bias, 1e-5, [weight1, weight2], [bias1, None], added if residual else None
    )


def definition(x: Tensor, rest: list[Tensor], residual: bool = True) -> Tensor:
    norm_weight, norm_bias, weight1, bias1, weight2, added = rest
    centred = x - x.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm_weight + norm_bias
    hidden = normalised @ weight1.T + bias1
    y = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)) @ weight2.T
    return y + added if residual else y


@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_branch(grad: bool, residual: bool, blocked: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocked:
        module = importlib.import_module("vmamba.ops.pointwise")  # the function has its name
        monkeypatch.setattr(module, "LARGE", 0)
        monkeypatch.setattr(module, "BLOCK", 7)  # 30 tokens: four blocks and a rest
    x, rest = branch_operands()
    with torch.set_grad_enabled(grad):
        y = branch(x.to(dtype), [t.to(dtype) for t in rest], residual)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), definition(x, rest, residual), rtol=1e-4, atol=1e-4)


def test_branch_gradients() -> None:
    x, rest = branch_operands()
    leaves = [t.float().requires_grad_() for t in (x, *rest)]
    truths = [t.requires_grad_() for t in (x, *rest)]
    got = torch.autograd.grad(branch(leaves[0], leaves[1:]).sin().sum(), leaves)
    expected = torch.autograd.grad(definition(truths[0], truths[1:]).sin().sum(), truths)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("learning", [True, False])
def test_opcheck_linear(operands: tuple[Tensor, Tensor, Tensor], learning: bool) -> None:
    x, weight, bias = (t.requires_grad_(learning) for t in operands)
    strided = torch.randn(2, 8, 5, 3).permute(0, 2, 3, 1).requires_grad_(learning)
    for arguments in ((x, weight, bias), (x, weight, None), (strided, weight, bias)):
        torch.library.opcheck(torch.ops.vmamba.onednn_linear.default, arguments)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("learning", [True, False])
def test_opcheck_branch(learning: bool) -> None:
    x, rest = branch_operands()
    x, norm_weight, norm_bias, weight1, bias1, weight2, added = (t.float().requires_grad_(learning) for t in (x, *rest))
    norm = (x, norm_weight, norm_bias, 1e-5)
    for layers in (([weight1, weight2], [bias1, None], added), ([weight1], [bias1], None)):
        torch.library.opcheck(torch.ops.vmamba.onednn_branch.default, (*norm, *layers))


def test_branch_flops_and_compilation() -> None:
    x, rest = branch_operands()
    x, (norm_weight, norm_bias, weight1, bias1, weight2, added) = x.float(), [t.float() for t in rest]
    arguments = (x, norm_weight, norm_bias, 1e-5, [weight1, weight2], [bias1, None])
    for grad in (True, False):
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            expected = pointwise_branch(*arguments, added)
        assert counter.get_total_flops() == 2 * 30 * (8 * 32 + 32 * 6)
        with torch.set_grad_enabled(grad):
            compiled = torch.compile(pointwise_branch, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(*arguments, added), expected, rtol=1e-4, atol=1e-5)


def test_use_backend_reaches_them(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    """PyTorch's own operations where a backend made of them is asked for, oneDNN otherwise."""

    def called() -> set[str]:
        with torch.no_grad(), torch.profiler.profile() as profile:
            pointwise(*operands)
            pointwise_branch(operands[0], torch.ones(8), torch.zeros(8), 1e-6, [operands[1]], [operands[2]])
        return {event.key for event in profile.key_averages() if event.key.startswith("vmamba::")}

    assert called() == {"vmamba::onednn_linear", "vmamba::onednn_branch"}
    for name in ("chunked", "reference"):
        with use_backend(name):
            assert called() == set()


def test_vmap_of_the_operators(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    """Tokens, weights or both of a batch at once, without a gradient, as one after the other."""
    x, weight, bias = operands
    norm = (torch.ones(8), torch.zeros(8))

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.vmamba.onednn_linear(x, weight, bias)
        return result

    def branch(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.vmamba.onednn_branch(x, *norm, 1e-6, [weight], [None], None)
        return result

    xs, weights = torch.stack([x, -x]), torch.stack([weight, 2 * weight])
    with torch.no_grad():
        for run in (linear, branch):
            for dims in ((0, None), (None, 0), (0, 0)):
                several = [xs if dims[0] == 0 else x, weights if dims[1] == 0 else weight]
                expected = [run(*(t[i] if d == 0 else t for t, d in zip(several, dims, strict=True))) for i in (0, 1)]
                torch.testing.assert_close(torch.vmap(run, in_dims=dims)(*several), torch.stack(expected))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_derivatives_of_the_operators(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    """No kernel has them: tangents and gradients are PyTorch's, never zero."""
    norm = [torch.ones(8), torch.zeros(8)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        branch = torch.ops.vmamba.onednn_branch(x, *norm, 1e-6, [weight], [bias], None)
        return torch.ops.vmamba.onednn_linear(x, weight, bias), branch

    def truth(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return F.linear(x, weight, bias), F.linear(F.layer_norm(x, (8,), *norm, 1e-6), weight, bias)

    def tangents(run: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(run, tensors, tensors)[1]

    with torch.no_grad():
        for got, expected in zip(tangents(ours, *operands), tangents(truth, *operands), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            assert got.count_nonzero() > 0
    leaves = [t.clone().requires_grad_() for t in operands]
    for got, expected in zip(
        torch.autograd.grad(sum(y.sin().sum() for y in ours(*leaves)), leaves),
        torch.autograd.grad(sum(y.sin().sum() for y in truth(*leaves)), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(50, 12, 40), (50, 40, 12), (0, 5, 7)])
def test_gradients_of_weights_that_are_wide_high_or_of_no_token(tokens: int, inputs: int, outputs: int) -> None:
    x, weight, dy = (
        torch.randn(tokens, inputs),
        torch.randn(outputs, inputs, requires_grad=True),
        torch.randn(tokens, outputs),
    )
    (gradient,) = torch.autograd.grad(pointwise(x, weight, None), weight, dy)
    torch.testing.assert_close(gradient.double(), dy.double().T @ x.double(), rtol=1e-5, atol=1e-5)
