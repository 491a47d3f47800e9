"""Frozen forms of the layers between stages."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.frozen.layer import FusedLayer, Parts
from vmamba.layers import ConvDownsample, PatchMerging
from vmamba.layers.downsample import concatenate_patches
from vmamba.layers.layout import check_tokens
from vmamba.ops import convolution, pointwise_branch


class FrozenConvDownsample(FusedLayer):
    """`ConvDownsample`; few tokens are gathered and multiplied."""

    expected: ClassVar[Parts] = {"conv": (nn.Conv2d,), "norm": (nn.LayerNorm,)}

    def __init__(self, layer: ConvDownsample) -> None:
        super().__init__(layer)
        self.dim, self.eps, self.padding = layer.dim, layer.norm.eps, int(layer.conv.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "ConvDownsample")
        self.refuse_gradients(x)
        with torch.no_grad():
            weight, bias = self.affine("conv")
            x = convolution(x.permute(0, 3, 1, 2), weight, bias, 2, self.padding).permute(0, 2, 3, 1)
            return F.layer_norm(x, x.shape[-1:], *self.affine("norm"), self.eps)


class FrozenPatchMerging(FusedLayer):
    """`PatchMerging`; normalisation and linear map are one operator."""

    expected: ClassVar[Parts] = {"reduction": (nn.Linear,), "norm": (nn.LayerNorm,)}

    def __init__(self, layer: PatchMerging) -> None:
        super().__init__(layer)
        self.dim, self.eps = layer.dim, cast(nn.LayerNorm, layer.norm).eps

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "PatchMerging")
        self.refuse_gradients(x)
        with torch.no_grad():
            weight, bias = self.affine("reduction")
            return pointwise_branch(concatenate_patches(x), *self.affine("norm"), self.eps, [weight], [bias])
