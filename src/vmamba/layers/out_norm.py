"""Normalisations after the scan, by name."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Permute


class SpatialSoftmax(nn.Module):
    """Softmax over the tokens of each channel: (B, H, W, C) → (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(dim=1).view_as(x)


def _layernorm_dwconv(dim: int, **factory: Any) -> nn.Module:
    layers = {
        "0": nn.LayerNorm(dim, **factory),
        "to_map": Permute([0, 3, 1, 2]),
        "1": _dwconv(dim, **factory),
        "to_tokens": Permute([0, 2, 3, 1]),
    }
    return nn.Sequential(OrderedDict(layers))


def _dwconv(dim: int, **factory: Any) -> nn.Module:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **factory)


#: Name → layer of `dim` channels. All map tokens (B, H, W, C) but ``"dwconv3x3"``, a convolution of (B, C, H, W).
OUT_NORMS: dict[str, Any] = {
    "layernorm": nn.LayerNorm,
    "none": lambda dim, **_: nn.Identity(),
    "dwconv3x3": _dwconv,
    "layernorm_dwconv3x3": _layernorm_dwconv,
    "softmax": lambda dim, **_: SpatialSoftmax(),
    "sigmoid": lambda dim, **_: nn.Sigmoid(),
}
