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
from vmamba.ops import convolution, packed_convolution, pointwise_branch


class FrozenConvDownsample(FusedLayer):
    """`ConvDownsample`; on a CPU a product, whose patches are gathered as it reads them, and the LayerNorm."""

    expected: ClassVar[Parts] = {"conv": (nn.Conv2d,), "norm": (nn.LayerNorm,)}

    def __init__(self, layer: ConvDownsample, precision: str) -> None:
        super().__init__(layer, precision)
        self.dim, self.eps = layer.dim, layer.norm.eps
        self.geometry = (layer.conv.kernel_size[0], 2, int(layer.conv.padding[0]))

    def pack(self) -> None:
        self.packed = {"conv": self.pack_layer("conv")} if self.is_packable() else {}

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "ConvDownsample")
        self.refuse_gradients(x)
        with torch.no_grad():
            weight, bias = self.affine("conv")
            norm_weight, norm_bias = self.affine("norm")
            x = x.permute(0, 3, 1, 2)
            if self.is_packed(x):
                norm = (norm_weight, norm_bias, self.eps)
                return packed_convolution(x, self.packed["conv"], len(weight), self.precision, self.geometry, norm)
            x = convolution(x, weight, bias, *self.geometry[1:]).permute(0, 2, 3, 1)
            return F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, self.eps)


class FrozenPatchMerging(FusedLayer):
    """`PatchMerging`; normalisation and linear map are one operator."""

    expected: ClassVar[Parts] = {"reduction": (nn.Linear,), "norm": (nn.LayerNorm,)}

    def __init__(self, layer: PatchMerging, precision: str) -> None:
        super().__init__(layer, precision)
        self.dim, self.eps = layer.dim, cast(nn.LayerNorm, layer.norm).eps

    def pack(self) -> None:
        self.packed = {"reduction": self.pack_layer("reduction", "norm")} if self.is_packable() else {}

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "PatchMerging")
        self.refuse_gradients(x)
        with torch.no_grad():
            weight, bias = self.affine("reduction")
            if self.is_packed(x):
                return self.linear(concatenate_patches(x), "reduction", eps=self.eps)
            return pointwise_branch(concatenate_patches(x), *self.affine("norm"), self.eps, [weight], [bias])
