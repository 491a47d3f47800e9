"""Mamba-2's functions against transformers' implementation of the same, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from support.golden import relative_error
from vmamba.compat.mamba2 import (
    RMSNorm,
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
    selective_state_update,
)

modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
if not hasattr(modeling, "mamba2_chunk_scan"):
    pytest.skip("this transformers has no such functions yet", allow_module_level=True)


def operands(length: int = 11, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two samples, six heads of four channels in two groups, three states."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    o = {"x": normal(2, length, 6, 4), "dt": normal(2, length, 6), "A": -normal(6).exp().float()}
    o |= {"B": normal(2, length, 2, 3), "C": normal(2, length, 2, 3), "D": normal(6).float()}
    return o | {"dt_bias": normal(6).float()}


@pytest.mark.parametrize("length", [1, 11])
@pytest.mark.parametrize("more", [{"dt_softplus": True}, {"dt_limit": (0.1, 0.5), "dt_softplus": True}], ids=str)
def test_scan(more: dict[str, Any], length: int) -> None:
    o = {name: t.requires_grad_() for name, t in operands(length).items()}
    y, last = mamba_chunk_scan_combined(**o, chunk_size=4, return_final_states=True, **more)
    truth = {"hidden_states" if name == "x" else name: t for name, t in o.items()}
    expected, expected_last = modeling.mamba2_chunk_scan(**truth, chunk_size=4, return_final_states=True, **more)
    assert relative_error(y, expected) < 1e-5
    assert relative_error(last, expected_last) < 1e-5
    cotangent = torch.randn_like(y)
    grads, truths = (torch.autograd.grad(out, list(o.values()), cotangent) for out in (y, expected))
    for name, gradient, exact in zip(o, grads, truths, strict=True):
        assert relative_error(gradient, exact) < 1e-4, name


def test_gate_and_skip_of_every_channel() -> None:
    o = operands()
    z, skip = torch.randn(2, 11, 6, 4), torch.randn(6, 4)
    plain = mamba_chunk_scan_combined(**(o | {"D": None}), chunk_size=4)
    y = mamba_chunk_scan_combined(**(o | {"D": skip}), chunk_size=4, z=z)
    torch.testing.assert_close(y, (plain + skip * o["x"]) * nn.functional.silu(z))
    with pytest.raises(NotImplementedError, match="not served by vmamba: install mamba_ssm"):
        mamba_chunk_scan_combined(**o, chunk_size=4, seq_idx=torch.zeros(2, 11))


@pytest.mark.parametrize("before", [False, True])
def test_norm(before: bool) -> None:
    ours, x, z = RMSNorm(24, group_size=8, norm_before_gate=before), torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    nn.init.normal_(ours.weight)
    theirs = modeling.MambaRMSNormGated(24, group_size=8, eps=1e-5)
    theirs.load_state_dict(ours.state_dict())
    expected = theirs(x) * nn.functional.silu(z) if before else theirs(x, z)
    assert relative_error(ours(x, z), expected) < 1e-6


def test_a_whole_block() -> None:
    from transformers import Mamba2Config

    torch.manual_seed(0)
    sizes = {"num_heads": 6, "head_dim": 4, "hidden_size": 12, "expand": 2, "n_groups": 2, "state_size": 3}
    config = Mamba2Config(**sizes, chunk_size=4, use_bias=True, num_hidden_layers=1)
    block = modeling.Mamba2Mixer(config, layer_idx=0).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 11, 12)
    y = mamba_split_conv1d_scan_combined(
        block.in_proj(x), block.conv1d.weight.squeeze(1), block.conv1d.bias, block.dt_bias, -block.A_log.exp(), block.D,
        chunk_size=4, rmsnorm_weight=block.norm.weight, rmsnorm_eps=config.layer_norm_epsilon, headdim=4, ngroups=2,
        outproj_weight=block.out_proj.weight, outproj_bias=block.out_proj.bias, norm_before_gate=False,
    )  # fmt: skip
    assert relative_error(y, block(x)) < 1e-5


def test_steps_are_the_scan() -> None:
    o = operands()
    o["D"] = torch.randn(6, 4)
    expected, last = mamba_chunk_scan_combined(**o, chunk_size=4, dt_softplus=True, return_final_states=True)
    state, outputs = torch.zeros(2, 6, 4, 3), []
    A, bias = o["A"][:, None, None].expand(6, 4, 3), o["dt_bias"][:, None].expand(6, 4)
    for t in range(11):
        step = o["dt"][:, t, :, None].expand(2, 6, 4)
        token = (o["x"][:, t], step, A, o["B"][:, t], o["C"][:, t], o["D"])
        outputs.append(selective_state_update(state, *token, dt_bias=bias, dt_softplus=True))
    assert relative_error(torch.stack(outputs, 1), expected) < 1e-5
    assert relative_error(state, last) < 1e-5


def test_half_precision() -> None:
    o = operands(dtype=torch.bfloat16)
    y = mamba_chunk_scan_combined(**o, chunk_size=4, dt_softplus=True)
    assert y.dtype == torch.bfloat16
    exact = mamba_chunk_scan_combined(**{name: t.float() for name, t in o.items()}, chunk_size=4, dt_softplus=True)
    assert relative_error(y, exact) < 1e-2
