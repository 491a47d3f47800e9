"""The block: that its fused form is the same, and steps aside for whoever changes or watches a layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vmamba import VMambaConfig
from vmamba.layers.block import Block


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    block = Block(8, VMambaConfig(), drop_path=0.5).eval()
    block.ss2d.reset_scan_parameters()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def layer_by_layer(block: Block, x: Tensor) -> Tensor:
    """The definition, without dropped paths."""
    ss2d, mlp = block.ss2d, block.mlp
    assert mlp is not None
    x = x + ss2d.out_proj(ss2d.out_norm(ss2d.mix(ss2d.in_proj(block.norm1(x)))))
    return x + mlp.fc2(mlp.act(mlp.fc1(block.norm2(x))))


@pytest.mark.parametrize("grad", [True, False])
def test_equals_its_layers(block: Block, grad: bool) -> None:
    x = torch.randn(2, 5, 3, 8)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x), layer_by_layer(block, x), rtol=1e-4, atol=1e-5)


LAYERS: dict[str, Callable[[Block], nn.Module]] = {
    name: (lambda block, name=name: block.get_submodule(name))  # type: ignore[misc]
    for name in (
        *("norm1", "ss2d", "ss2d.in_proj", "ss2d.conv", "ss2d.act", "ss2d.out_norm", "ss2d.out_act", "ss2d.out_proj"),
        *("drop_path1", "norm2", "mlp", "mlp.fc1", "mlp.act", "mlp.fc2", "drop_path2"),
    )
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_hooks_see_every_layer(block: Block, name: str) -> None:
    x, seen = torch.randn(2, 5, 3, 8), []
    expected = block(x)
    handle = LAYERS[name](block).register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 1
    handle.remove()
    block(x)
    assert len(seen) == 1


@torch.no_grad()
def test_global_hooks_see_every_layer(block: Block) -> None:
    seen = []
    with nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module)):
        block(torch.randn(2, 5, 3, 8))
    assert {LAYERS[name](block) for name in LAYERS} <= set(seen)


class Adapter(nn.Module):
    """Replaces a layer and adds to its output, as low-rank adapters do."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 1


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_replaced_layer_is_used(block: Block, name: str) -> None:
    x = torch.randn(2, 5, 3, 8)
    before = block(x)
    calls: list[None] = []
    adapter = Adapter(LAYERS[name](block))
    block.set_submodule(name, adapter)
    if name not in ("ss2d", "mlp"):
        adapter.register_forward_hook(lambda *_: calls.append(None))
        block(x)
        assert calls
    assert (block(x) - before).abs().max() > 1e-3


def test_paths_are_dropped_in_training(block: Block) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 3, 8)
    with torch.no_grad():
        y = block.train()(x)
    untouched = (y == x).flatten(1).all(1).float().mean()
    assert 0.05 < untouched < 0.5  # both branches dropped: a quarter
