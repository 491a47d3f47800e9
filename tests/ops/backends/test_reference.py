"""The definition against closed forms, brute force and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from support.golden import relative_error
from support.operands import selective_operands, ss2d_operands
from vmamba.ops import selective_scan, ss2d_scan, use_backend
from vmamba.ops.backends import reference
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.routes import PATTERNS, routes


def test_constant_input_has_a_geometric_series_as_answer() -> None:
    """Constant Δ, x, b, c: h[t] = Δ x b (1 - q^(t+1)) / (1 - q) with q = exp(Δ A)."""
    delta, a, b, c, skip, x, length = 0.3, -0.7, 1.5, -2.0, 0.25, 1.2, 40
    q = math.exp(delta * a)
    t = torch.arange(length, dtype=torch.float64)
    expected = c * delta * x * b * (1 - q ** (t + 1)) / (1 - q) + skip * x

    def full(value: float, *shape: int) -> torch.Tensor:
        return torch.full(shape, value, dtype=torch.float64)

    with use_backend("reference"):
        y, last = selective_scan(
            full(x, 1, 1, length),
            full(delta, 1, 1, length),
            full(a, 1, 1),
            full(b, 1, 1, length),
            full(c, 1, 1, length),
            full(skip, 1),
            return_last_state=True,
        )
    torch.testing.assert_close(y[0, 0], expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(last.item(), (expected[-1].item() - skip * x) / c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ss2d_is_the_sum_over_all_earlier_tokens_of_every_route(pattern: str) -> None:
    """Written out as y[l] = Σ_k Σ_j c[l] exp(A Σ Δ between) Δ[j] x[j] b[j], token by token."""
    height, width, channels, states, rank = 3, 4, 2, 2, 2
    x, dbc, dt_weight, A, D, bias = ss2d_operands(1, height, width, channels, states, rank, pattern)
    tokens, low = x[0].flatten(0, 1), dbc[0].flatten(0, 1)
    expected = torch.zeros_like(tokens)
    for k, route in enumerate(routes(pattern)):
        delta = torch.log1p(torch.exp(low[:, k, :rank] @ dt_weight[k].T + bias[k]))
        b, c = low[:, k, rank : rank + states], low[:, k, rank + states :]
        for line in route.order(height, width).view(-1, route.line_length(height, width)).tolist():
            for i, token in enumerate(line):
                for j in range(i + 1):
                    between = delta[line[j + 1 : i + 1]].sum(0)
                    weight = (torch.exp(between[:, None] * A[k]) * b[line[j]] * c[token]).sum(1)
                    expected[token] += weight * delta[line[j]] * tokens[line[j]]
                expected[token] += D[k] * tokens[token]
    with use_backend("reference"):
        assert relative_error(ss2d_scan(x, dbc, dt_weight, A, D, bias, pattern)[0].flatten(0, 1), expected) < 1e-13


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ss2d_gradients_by_finite_differences(pattern: str) -> None:
    operands = [t.requires_grad_() for t in ss2d_operands(1, 2, 3, 2, 2, 1, pattern)]
    with use_backend("reference"):
        assert gradcheck(lambda *args: ss2d_scan(*args, pattern), operands)


def test_selective_scan_gradients_by_finite_differences() -> None:
    operands = {name: t.requires_grad_() for name, t in selective_operands(1, 4, 5, 2, groups=2).items()}

    def run(u, delta, A, B, C, D, bias):  # type: ignore[no-untyped-def]
        return selective_scan(u, delta, A, B, C, D, None, bias, True, True)

    with use_backend("reference"):
        assert gradcheck(run, tuple(operands.values()))


def test_adjoint_equals_autograd_of_the_loop() -> None:
    operands = [t.requires_grad_() for t in ss2d_operands(2, 3, 5, 4, 3, 2, "cross")]
    y = reference.ss2d_scan(SS2DOperands(*operands, "cross"))
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, operands, dy)
    got = reference.ss2d_scan_backward(dy, SS2DOperands(*(t.detach() for t in operands), "cross"))
    for gradient, truth in zip(got, expected, strict=True):
        assert relative_error(gradient, truth) < 1e-13
