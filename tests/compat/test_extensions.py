"""Raw `fwd` and `bwd` against the loop, differentiated by autograd in float64."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from support.golden import relative_error
from support.operands import selective_operands
from vmamba.compat.selective_scan_interface import selective_scan_ref
from vmamba.compat.standins import (
    selective_scan_cuda,
    selective_scan_cuda_core,
    selective_scan_cuda_ndstate,
    selective_scan_cuda_nrow,
    selective_scan_cuda_oflex,
    selective_scan_cuda_oflex_rh,
)

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def operands(
    length: int = 9, dtype: torch.dtype = torch.float32, states: int = 3, groups: int = 2
) -> dict[str, Tensor]:
    """Features in `dtype`, parameters in float32, as the extensions ask for."""
    o = selective_operands(2, 4, length, states, groups)
    return {name: t.to(dtype if name in ("u", "delta", "B", "C") else torch.float32) for name, t in o.items()}


def truth(
    o: dict[str, Tensor | None], dout: Tensor, z: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """Output, last state, and gradients of sum(out · dout) by name."""
    leaves = {name: None if t is None else t.double().requires_grad_() for name, t in (o | {"z": z}).items()}
    out, last = selective_scan_ref(**leaves, delta_softplus=True, return_last_state=True)
    given = {name: t for name, t in leaves.items() if t is not None}
    grads = torch.autograd.grad(out, list(given.values()), dout.double())
    return out.detach(), last.detach(), dict.fromkeys(leaves) | dict(zip(given, grads, strict=True))


def check(got: list[Tensor | None], grads: dict[str, Tensor | None], o: dict[str, Tensor | None], bound: float) -> None:
    for name, gradient in zip(NAMES, got, strict=True):
        if o[name] is None:
            assert gradient is None, name
            continue
        assert gradient is not None, name
        assert (gradient.shape, gradient.dtype) == (o[name].shape, o[name].dtype), name
        assert relative_error(gradient, grads[name]) < bound, name


@pytest.mark.parametrize("length", [1, 9, 2049])
@pytest.mark.parametrize(
    ("module", "more"),
    [(selective_scan_cuda_core, (1,)), (selective_scan_cuda_nrow, (2,)), (selective_scan_cuda_oflex, (1, True))],
)
def test_without_gate(module: ModuleType, more: tuple[Any, ...], length: int) -> None:
    o = operands(length)
    dout = torch.randn(2, 4, length)
    expected, last, grads = truth(o, dout)
    out, x = module.fwd(*o.values(), True, *more)
    assert relative_error(out, expected) < 1e-5
    assert x.shape == (2, 4, -(-length // 2048), 6)
    assert relative_error(x[:, :, -1, 1::2], last) < 1e-5
    check(module.bwd(*o.values(), dout, x, True, 1), grads, o, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """oflex returns float32, not rounded on the way, and takes its gradient; the others return what they get."""
    o = operands(dtype=dtype)
    dout = torch.randn(2, 4, 9)
    expected, _, grads = truth(o, dout)
    assert selective_scan_cuda_core.fwd(*o.values(), True, 1)[0].dtype == dtype
    assert selective_scan_cuda_oflex.fwd(*o.values(), True, 1, False)[0].dtype == dtype
    out, x = selective_scan_cuda_oflex.fwd(*o.values(), True, 1, True)
    assert out.dtype == torch.float32
    assert relative_error(out, expected) < 1e-5
    check(selective_scan_cuda_oflex.bwd(*o.values(), dout, x, True, 1), grads, o, 1e-2)


def test_oflex_spreads_few_step_sizes() -> None:
    o = operands()
    few = o | {"delta": o["delta"][:, ::2], "delta_bias": o["delta_bias"][::2]}
    full = few | {name: few[name].repeat_interleave(2, dim) for name, dim in (("delta", 1), ("delta_bias", 0))}
    dout = torch.randn(2, 4, 9)
    expected, _, grads = truth(full, dout)
    grads |= {"delta": grads["delta"].view(2, 2, 2, 9).sum(2), "delta_bias": grads["delta_bias"].view(2, 2).sum(1)}
    assert relative_error(selective_scan_cuda_oflex.fwd(*few.values(), True, 1, True)[0], expected) < 1e-5
    check(selective_scan_cuda_oflex.bwd(*few.values(), dout, None, True, 1), grads, few, 1e-4)


def test_one_state() -> None:
    o = operands(states=1)
    dout = torch.randn(2, 4, 9)
    expected, last, grads = truth(o, dout)
    flat = o | {"A": o["A"].squeeze(1), "B": o["B"].squeeze(2), "C": o["C"].squeeze(2)}
    out, x = selective_scan_cuda_ndstate.fwd(*flat.values(), True, 1)
    assert relative_error(out, expected) < 1e-5
    assert relative_error(x[:, :, -1, 1::2], last) < 1e-5
    grads |= {"A": grads["A"].squeeze(1), "B": grads["B"].squeeze(2), "C": grads["C"].squeeze(2)}
    check(selective_scan_cuda_ndstate.bwd(*flat.values(), dout, x, True, 1), grads, flat, 1e-4)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("forms", ["by group", "constant", "by token"])
def test_mamba_with_gate(forms: str, optional: bool) -> None:
    o: dict[str, Any] = operands()
    if forms == "constant":
        o["B"] = torch.randn(4, 3)
    if forms == "by token":
        o["B"] = o["B"][:, 0]
    if not optional:
        o |= {"D": None, "delta_bias": None}
    z, dout = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    operands_with_gate = [*list(o.values())[:6], z, o["delta_bias"]]
    expected, last, grads = truth(o, dout, z)
    out, x, gated = selective_scan_cuda.fwd(*operands_with_gate, True)
    assert relative_error(gated, expected) < 1e-5
    assert relative_error(out, truth(o, dout)[0]) < 1e-5
    assert relative_error(x[:, :, -1, 1::2], last) < 1e-5
    dz = torch.full_like(z, float("nan"))
    *got, dz_back, again = selective_scan_cuda.bwd(*operands_with_gate, dout, x, out, dz, True, True)
    check(got, grads, o, 1e-4)
    assert dz_back is dz
    assert relative_error(dz, grads["z"]) < 1e-4
    assert torch.equal(again, gated)
    assert len(selective_scan_cuda.bwd(*operands_with_gate, dout, x, out, None, True, False)) == 8
    with pytest.raises(ValueError, match="with a gate z, out"):
        selective_scan_cuda.bwd(*operands_with_gate, dout, x, None, None, True, False)


def test_mamba_without_gate() -> None:
    o = operands()
    dout = torch.randn(2, 4, 9)
    expected, _, grads = truth(o, dout)
    without = [*list(o.values())[:6], None, o["delta_bias"]]
    out, x = selective_scan_cuda.fwd(*without, True)
    assert relative_error(out, expected) < 1e-5
    check(selective_scan_cuda.bwd(*without, dout, x, None, None, True, False), grads, o, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("states", [1, 3])
def test_states_instead_of_outputs(states: int, dtype: torch.dtype) -> None:
    """Spatial-Mamba's extension: every state is the output of a scan with that state alone and C = 1."""
    o = operands(dtype=dtype, states=states)
    del o["C"]
    names = ("u", "delta", "A", "B", "delta_bias")
    leaves = {name: o[name].double().requires_grad_() for name in names}
    u, delta, A, B, bias = leaves.values()
    alone = [slice(n, n + 1) for n in range(states)]
    scans = [
        selective_scan_ref(u, delta, A[:, n], B[:, :, n], torch.ones_like(B[:, :, n]), None, None, bias, True)
        for n in alone
    ]
    expected = torch.stack(scans, dim=2)
    dout = torch.randn(2, 4, states, 9)
    grads = torch.autograd.grad(expected, list(leaves.values()), dout.double())
    given = (o["u"], o["delta"], o["A"], o["B"], o["D"], o["delta_bias"], True, 1)
    out, x = selective_scan_cuda_oflex_rh.fwd(*given, True)
    assert out.dtype == torch.float32
    assert relative_error(out, expected) < 1e-5
    assert relative_error(x[:, :, -1, 1::2], expected[..., -1]) < 1e-5
    assert selective_scan_cuda_oflex_rh.fwd(*given, False)[0].dtype == dtype
    *got, dD, dbias = selective_scan_cuda_oflex_rh.bwd(*given[:6], dout, x, True, 1)
    assert dD is not None
    assert not dD.any()
    for name, gradient, exact in zip(names, [*got, dbias], grads, strict=True):
        assert gradient is not None, name
        assert (gradient.shape, gradient.dtype) == (o[name].shape, o[name].dtype), name
        assert relative_error(gradient, exact) < (1e-4 if dtype == torch.float32 else 1e-2), name
