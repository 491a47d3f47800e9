"""`Block` against its definition, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.layers import Block


def definition(block: Block, x: Tensor) -> Tensor:
    """Without dropped paths."""
    x = x + block.ss2d(F.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias))
    if block.mlp is None:
        return x
    hidden = F.layer_norm(x, (8,), block.norm2.weight, block.norm2.bias) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    return x + F.gelu(hidden) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


@pytest.mark.parametrize("options", [{}, {"mlp_ratio": 0.0}, {"mlp_ratio": 1.5, "gate": True, "d_state": 3}], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_equals_its_definition(grad: bool, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block, x = Block(8, drop_path=0.5, **options).eval(), torch.randn(2, 5, 3, 8)
    truth = block.double()(x.double())
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block.float()(x), definition(block, x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(block(x).double(), truth, rtol=1e-4, atol=1e-5)


def test_paths_are_dropped_in_training() -> None:
    torch.manual_seed(0)
    block, x = Block(8, drop_path=0.5).train(), torch.randn(64, 3, 3, 8)
    with torch.no_grad():
        y = block(x)
    untouched = (y == x).flatten(1).all(1).float().mean()
    assert 0.05 < untouched < 0.5  # both branches dropped: a quarter


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="d_stat"):
        Block(8, d_stat=2)
    with pytest.raises(ValueError, match="unknown activation 'swish'; choose one of silu, gelu, relu, sigmoid"):
        Block(8, mlp_act="swish")
