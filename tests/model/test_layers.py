from __future__ import annotations

import torch
from torch import Tensor, nn

from vmamba.model.layers import Mlp


class Adapter(nn.Module):
    """Replaces a layer and adds to its output, as low-rank adapters do."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 1


def test_mlp_equals_its_layers_and_respects_hooks_and_replacements() -> None:
    torch.manual_seed(0)
    mlp, x = Mlp(8, 32, "gelu"), torch.randn(2, 5, 3, 8)
    with torch.no_grad():
        expected = mlp.fc2(nn.functional.gelu(mlp.fc1(x)))
        torch.testing.assert_close(mlp(x), expected)
        seen: list[Tensor] = []
        handle = mlp.act.register_forward_hook(lambda module, args, output: seen.append(output))
        torch.testing.assert_close(mlp(x), expected)
        torch.testing.assert_close(mlp.fc2(seen[0]), expected)
        handle.remove()
        mlp.fc1 = Adapter(mlp.fc1)
        torch.testing.assert_close(mlp(x), mlp.fc2(nn.functional.gelu(mlp.fc1(x))))
    relu = Mlp(8, 32, "relu")
    torch.testing.assert_close(relu(x), relu.fc2(relu.fc1(x).relu()))
