from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.golden import relative_error
from support.operands import selective_operands
from vmamba.compat.selective_scan_interface import (
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    selective_scan_fn,
    selective_scan_ref,
    selective_scan_v1_fn,
    selective_scan_v1_ref,
)
from vmamba.ops import selective_scan, use_backend


def test_the_loop_is_the_definition() -> None:
    """Two loops written apart: that of the operator's definition, and this one with autograd."""
    o = {name: t.requires_grad_() for name, t in selective_operands(2, 4, 9, 3, 2).items()}
    z = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    leaves, cotangent = [*o.values(), z], torch.randn(2, 4, 9, dtype=torch.float64)
    with use_backend("reference"):
        expected, state = selective_scan(**o, z=z, delta_softplus=True, return_last_state=True)
        grads = torch.autograd.grad(expected, leaves, cotangent)
    out, last = selective_scan_ref(**o, z=z, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close((out, last), (expected, state))
    torch.testing.assert_close(torch.autograd.grad(out, leaves, cotangent), grads)


def test_both_orders_of_arguments() -> None:
    o = selective_operands(2, 4, 9, 3, 1, torch.float32)
    u, delta, A, B, C, D, bias = o.values()
    z = torch.randn(2, 4, 9)
    expected = selective_scan_ref(u, delta, A, B, C, D, None, bias, True)
    torch.testing.assert_close(selective_scan_fn(u, delta, A, B, C, D, None, bias, True), expected)
    torch.testing.assert_close(selective_scan_v1_fn(u, delta, A, B, C, D, bias, True, 4), expected)
    torch.testing.assert_close(selective_scan_v1_fn(u, delta, A, B, C, D, bias, delta_softplus=True, nrows=2), expected)
    torch.testing.assert_close(selective_scan_v1_ref(u, delta, A, B, C, D, bias, True), expected)
    gated, last = selective_scan_fn(u, delta, A, B[:, 0], C[:, 0], D, z, bias, True, True)
    torch.testing.assert_close(gated, expected * F.silu(z))
    assert last.shape == (2, 4, 3)


def test_complex_rates_in_the_loop() -> None:
    """A complex state of N numbers is a real one of 2N that turns: checked by its closed form for constant Δ."""
    length = 6
    A = torch.tensor([[-0.3 + 2.0j]])
    u = torch.zeros(1, 1, length)
    u[..., 0] = 1.0
    B = torch.zeros(1, 1, 2 * length)
    B[..., 0::2] = 1.0
    y = selective_scan_ref(u, torch.full((1, 1, length), 0.5), A, B, B)
    expected = 2 * 0.5 * (torch.exp(A * 0.5 * torch.arange(length))).real
    torch.testing.assert_close(y[0], expected)


def inner_operands() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "xz": normal(2, 12, 7),
        "conv1d_weight": normal(6, 1, 4),
        "conv1d_bias": normal(6),
        "x_proj_weight": normal(2 + 2 * 3, 6),
        "delta_proj_weight": normal(6, 2),
        "out_proj_weight": normal(5, 6),
        "out_proj_bias": normal(5),
        "A": -torch.exp(normal(6, 3)),
        "D": normal(6),
        "delta_bias": normal(6) - 2,
    }


def test_the_inner_function_by_hand() -> None:
    o = inner_operands()
    xz, R, N = o["xz"], 2, 3
    x = torch.zeros(2, 6, 7, dtype=torch.float64)
    for t in range(7):  # the causal convolution
        for tap in range(4):
            if t - 3 + tap >= 0:
                x[..., t] += o["conv1d_weight"][:, 0, tap] * xz[:, :6, t - 3 + tap]
    x = F.silu(x + o["conv1d_bias"][:, None])
    projected = torch.einsum("bdl,rd->brl", x, o["x_proj_weight"])
    delta = torch.einsum("brl,dr->bdl", projected[:, :R], o["delta_proj_weight"])
    y = selective_scan_ref(
        x, delta, o["A"], projected[:, R : R + N], projected[:, R + N :], o["D"], xz[:, 6:], o["delta_bias"], True
    )
    without = {name: t for name, t in o.items() if not name.startswith("out_proj")}
    torch.testing.assert_close(mamba_inner_fn_no_out_proj(**without), y)
    expected = torch.einsum("bdl,ed->ble", y, o["out_proj_weight"]) + o["out_proj_bias"]
    torch.testing.assert_close(mamba_inner_fn(**o), expected)
    B = torch.randn(6, 3, dtype=torch.float64)
    given = selective_scan_ref(x, delta, o["A"], B, projected[:, R + N :], o["D"], xz[:, 6:], o["delta_bias"], True)
    torch.testing.assert_close(mamba_inner_fn_no_out_proj(**without, B=B), given)
    with pytest.raises(TypeError, match="A must be real"):
        mamba_inner_fn(**(o | {"A": o["A"].to(torch.complex128)}))


def test_the_inner_function_with_norms_and_biases() -> None:
    o = inner_operands()
    weights = {name: torch.rand(n, dtype=torch.float64) + 0.5 for name, n in (("b", 3), ("c", 3), ("dt", 6))}
    bias = torch.randn(3, dtype=torch.float64)
    normed = mamba_inner_fn(**o, B_proj_bias=bias, **{f"{name}_rms_weight": w for name, w in weights.items()})
    x = F.silu(F.conv1d(o["xz"][:, :6], o["conv1d_weight"], o["conv1d_bias"], padding=3, groups=6)[..., :7])
    low_rank, B, C = F.linear(x.mT, o["x_proj_weight"]).split([2, 3, 3], dim=-1)

    def norm(t: Tensor, weight: Tensor) -> Tensor:
        return (t * weight / (t.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).mT

    y = selective_scan_ref(
        x,
        norm(low_rank @ o["delta_proj_weight"].T, weights["dt"]),
        o["A"],
        norm(B + bias, weights["b"]),
        norm(C, weights["c"]),
        o["D"],
        o["xz"][:, 6:],
        o["delta_bias"],
        True,
    )
    assert relative_error(normed, F.linear(y.mT, o["out_proj_weight"], o["out_proj_bias"])) < 1e-10
