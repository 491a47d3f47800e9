"""`Mlp`: two linear maps of every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmamba.layers.activation import activation
from vmamba.layers.call import call
from vmamba.layers.layout import check_tokens


class Mlp(nn.Module):
    """Two linear maps of every token with an activation between: (B, H, W, dim) → (B, H, W, dim).

    Args:
        dim: Channels.
        hidden_dim: Channels between the two.
        act: ``"gelu"``, ``"silu"``, ``"relu"`` or ``"sigmoid"``.
        device: Where to create the parameters.
        dtype: Their dtype.

    Example:
        >>> Mlp(64, 256)(torch.randn(2, 14, 20, 64)).shape
        torch.Size([2, 14, 20, 64])
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        act: str = "gelu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.fc1 = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.act = activation(act)
        self.fc2 = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "Mlp")
        x = self.fc1(x) if torch.jit.is_scripting() else call(self.fc1, x)
        x = self.act(x)
        return self.fc2(x) if torch.jit.is_scripting() else call(self.fc2, x)
