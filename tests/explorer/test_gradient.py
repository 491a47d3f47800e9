"""Gradients in standard operators against those of the operators they stand for."""

from __future__ import annotations

import pytest
import torch

from support.golden import relative_error
from vmamba.explorer.gradient import convolution_gradient, scan_gradient


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("pattern", ["cross", "bidirectional", "unidirectional", "rows_backward", "columns"])
def test_of_a_scan(pattern: str, states: int) -> None:
    torch.manual_seed(0)
    routes, height, width, channels, rank = (1 if "_" in pattern or pattern == "columns" else 4), 5, 7, 6, 2
    x = torch.randn(1, height, width, channels, dtype=torch.float64)
    dbc = torch.randn(1, height, width, routes, rank + 2 * states, dtype=torch.float64)
    weight, bias = torch.randn(routes, channels, rank).double(), torch.randn(routes, channels).double()
    A, D, dy = (
        -torch.rand(routes, channels, states).double(),
        torch.randn(routes, channels).double(),
        torch.randn_like(x),
    )
    expected = torch.ops.vmamba.ss2d_scan_backward(dy, x, dbc, weight, A, D, bias, pattern)
    dx, d_dbc, *_ = scan_gradient(dy, x, dbc, weight, A, D, bias, pattern)
    assert dx is not None
    assert d_dbc is not None
    assert relative_error(dx, expected[0]) < 1e-12
    assert relative_error(d_dbc, expected[1]) < 1e-12


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "groups"), [(9, 3, 2, 1), (8, 3, 2, 1), (8, 2, 2, 1), (7, 3, 1, 4)]
)
def test_of_a_convolution(size: int, kernel: int, stride: int, groups: int) -> None:
    x = torch.randn(2, 4, size, size + 1, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 4 // groups, kernel, kernel, dtype=torch.float64)
    y = torch.nn.functional.conv2d(x, weight, stride=stride, padding=kernel // 2, groups=groups)
    dy = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, dy)
    step, pad = [stride] * 2, [kernel // 2] * 2
    dx, *_ = convolution_gradient(
        dy, x.detach(), weight, None, step, pad, [1, 1], False, [0, 0], groups, [True, False, False]
    )
    torch.testing.assert_close(dx, expected)
