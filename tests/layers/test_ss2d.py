"""`SS2D` against its definition, its initial values, and what it says of other layouts."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.layers import SS2D
from vmamba.ops import ss2d_scan, use_backend


def definition(layer: SS2D, x: Tensor) -> Tensor:
    """A gated layer with a LayerNorm, from its parameters and the definition of the scan."""
    x, gate = (x @ layer.in_proj.weight.T).chunk(2, dim=-1)
    x = F.silu(F.conv2d(x.permute(0, 3, 1, 2), layer.conv.weight, None, padding=1, groups=x.shape[-1]))
    x = x.permute(0, 2, 3, 1)
    dbc = torch.stack([x @ weight.T for weight in layer.x_proj.weight.chunk(4)], dim=3)
    with use_backend("reference"):
        x = ss2d_scan(x, dbc, layer.dt_proj_weight, -layer.A_log.exp(), layer.D, layer.dt_proj_bias, "cross")
    x = F.layer_norm(x, x.shape[-1:], layer.out_norm.weight, layer.out_norm.bias)
    return (x * F.silu(gate)) @ layer.out_proj.weight.T


@pytest.mark.parametrize("grad", [True, False])
def test_equals_its_definition(grad: bool) -> None:
    torch.manual_seed(0)
    layer, x = SS2D(6, d_state=2, ssm_ratio=1.5, dt_rank=2, gate=True), torch.randn(2, 5, 3, 6)
    truth = definition(layer.double(), x.double())
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer.float()(x).double(), truth, rtol=1e-4, atol=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"d_state": 4, "ssm_ratio": 2.0, "gate": True, "gate_act": False, "conv": 5, "conv_bias": True},
    {"conv": 0, "act": "gelu", "out_act": True, "scan": "unidirectional", "init": "rand"},
    {"scan": "bidirectional", "init": "zero", "out_norm": "none"},
    {"scan": "cascade", "out_norm": "dwconv3x3", "act": "relu"},
    {"out_norm": "layernorm_dwconv3x3", "act": "sigmoid"},
    {"out_norm": "softmax"},
    {"out_norm": "sigmoid", "dt_rank": 3},
]


@pytest.fixture
def dirty_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Memory that is not initialised holds NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("dirty_memory")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_is_initialised(options: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        layer = SS2D(16, **options, dtype=dtype)
        assert all(parameter.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = SS2D(16, **options), torch.randn(2, 4, 5, 16)
    y = layer(x)
    assert y.shape == x.shape
    (y * torch.randn_like(y)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scan": "diagonal"},
            "SS2D: scan must be one of cross, unidirectional, bidirectional, cascade, got",
        ),
        ({"out_norm": "batchnorm"}, "SS2D: out_norm must be one of layernorm, none, "),
        ({"init": "ones"}, "SS2D: init must be one of mamba, rand, zero, got 'ones'"),
        (
            {"conv": 4},
            "SS2D: dim, d_state, ssm_ratio · dim and dt_rank must be at least 1 and conv odd or 0, got dim=",
        ),
        ({"d_state": 0}, "SS2D: dim, d_state, "),
        ({"act": "swish"}, "unknown activation 'swish'"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        SS2D(8, **options)
