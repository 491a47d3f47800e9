"""`Block`: what VMamba is made of."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vmamba.layers.parts import NORM_EPS, Mlp, Pointwise, is_watched
from vmamba.layers.ss2d import SS2D
from vmamba.model.config import VMambaConfig
from vmamba.ops import pointwise_branch

torch.fx.wrap("pointwise_branch")  # as in its own module


class Block(nn.Module):
    """``x + drop_path(SS2D(norm(x)))``, then ``x + drop_path(MLP(norm(x)))``, on tokens (B, H, W, dim)."""

    def __init__(self, dim: int, config: VMambaConfig, drop_path: float, **factory: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS, **factory)
        self.ss2d = SS2D(dim, config, **factory)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.mlp: nn.Module | None = None
        if config.mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS, **factory)
            self.mlp = Mlp(dim, int(config.mlp_ratio * dim), config.mlp_act, **factory)
            self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this form)
            if self._fuses():
                return self._fused(x)
        x = x + self.drop_path1(self.ss2d(self.norm1(x)))
        if self.mlp is not None:
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x

    def _fused(self, x: Tensor) -> Tensor:
        """The same in three steps, of which the first and the last two are one operator each where that is faster."""
        ss2d, mlp = self.ss2d, cast(Mlp, self.mlp)
        inner = _branch(x, self.norm1, (ss2d.in_proj,))
        x = _branch(ss2d.mix(inner), ss2d.out_norm, (ss2d.out_proj,), x)
        return _branch(x, self.norm2, (mlp.fc1, mlp.fc2), x)

    def _fuses(self) -> bool:
        """Whether `_fused` does the same: the usual layers, which nobody has replaced (as adapters do) or watches."""
        ss2d, mlp = self.ss2d, self.mlp
        if type(ss2d) is not SS2D or type(mlp) is not Mlp or ss2d.gated or _has_any_global_hook():
            return False
        layers = (
            (ss2d, SS2D),
            (mlp, Mlp),
            (self.norm1, nn.LayerNorm),
            (ss2d.in_proj, Pointwise),
            (ss2d.out_norm, nn.LayerNorm),
            (ss2d.out_act, nn.Identity),
            (ss2d.out_proj, Pointwise),
            (self.norm2, nn.LayerNorm),
            (mlp.fc1, Pointwise),
            (mlp.act, nn.GELU),
            (mlp.fc2, Pointwise),
        )
        if not all(type(layer) is usual and not is_watched(layer) for layer, usual in layers):
            return False
        return not any(
            is_watched(d) or (self.training and type(d) is DropPath) for d in (self.drop_path1, self.drop_path2)
        )


def _branch(x: Tensor, norm: nn.Module, layers: tuple[Pointwise, ...], residual: Tensor | None = None) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return pointwise_branch(x, norm.weight, norm.bias, norm.eps, weights, biases, residual)
