"""The linear map of tokens against torch's own, however it is computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vmamba.ops import pointwise


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


@pytest.mark.parametrize("grad", [True, False])
def test_gelu(operands: tuple[Tensor, Tensor, Tensor], grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(pointwise(*operands, gelu=True), F.gelu(F.linear(*operands)), rtol=1e-4, atol=1e-5)


def test_gradients(operands: tuple[Tensor, Tensor, Tensor]) -> None:
    leaves = [t.requires_grad_() for t in operands]
    expected = torch.autograd.grad(F.linear(*leaves).sin().sum(), leaves)
    for got, truth in zip(torch.autograd.grad(pointwise(*leaves).sin().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5)


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
