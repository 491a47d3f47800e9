"""`Block`: what VMamba is made of."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba.layers.layout import check_tokens
from vmamba.layers.mlp import Mlp
from vmamba.layers.ss2d import SS2D


class Block(nn.Module):
    """``x + drop_path(SS2D(norm(x)))``, then ``x + drop_path(MLP(norm(x)))``, on tokens (B, H, W, dim).

    Args:
        dim: Channels.
        mlp_ratio: Hidden channels of the MLP as a multiple of `dim`; 0 for no MLP.
        mlp_act: Its activation: ``"gelu"``, ``"silu"``, ``"relu"`` or ``"sigmoid"``.
        drop_path: Probability of leaving out a branch of a sample, in training.
        device: Where to create the parameters.
        dtype: Their dtype.
        **ss2d: Keywords of `SS2D`: ``d_state=16``, ``ssm_ratio=2.0``, ``gate=True`` …

    Raises:
        ValueError: For an impossible option, or, when called, for another layout than (B, H, W, dim).

    Example:
        >>> import torch
        >>> Block(64, d_state=4)(torch.randn(2, 14, 20, 64)).shape
        torch.Size([2, 14, 20, 64])
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_ratio: float = 4.0,
        mlp_act: str = "gelu",
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **ss2d: Any,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.norm1 = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.ss2d = SS2D(dim, device=device, dtype=dtype, **ss2d)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim, device=device, dtype=dtype)
            self.mlp = Mlp(dim, int(mlp_ratio * dim), act=mlp_act, device=device, dtype=dtype)
            self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "Block")
        x = x + self.drop_path1(self.ss2d(self.norm1(x)))
        if self.mlp is not None:
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x
