"""The dense convolution against torch's own, for few and for many tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vmamba.ops import convolution


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (5, 4), (7, 7), (20, 30)], ids=str)
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_values(size: tuple[int, int], kernel: int, grad: bool, bias: bool) -> None:
    padding = (kernel - 1) // 2
    torch.manual_seed(0)
    x = torch.randn(2, 6, *size).contiguous(memory_format=torch.channels_last)
    weight, b = torch.randn(40, 6, kernel, kernel), torch.randn(40) if bias else None
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        y = convolution(x, weight, b, 2, padding)
    expected = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), 2, padding)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert counter.get_total_flops() == 2 * y.numel() * 6 * kernel**2


def test_compilation() -> None:
    x, weight = torch.randn(1, 6, 8, 8).contiguous(memory_format=torch.channels_last), torch.randn(40, 6, 3, 3)
    with torch.no_grad():
        compiled = torch.compile(convolution, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(
            compiled(x, weight, None, 2, 1), F.conv2d(x, weight, None, 2, 1), rtol=1e-4, atol=1e-4
        )
