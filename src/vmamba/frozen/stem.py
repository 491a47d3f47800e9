"""`FrozenStem`: from an image to tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.frozen.layer import FusedLayer, Parts
from vmamba.layers import MapStem, Stem
from vmamba.layers.layout import check_image
from vmamba.ops import pack_convolution, packed_convolution


class FrozenStem(FusedLayer):
    """`Stem` or `MapStem`; on a CPU each convolution is a product, with LayerNorm and GELU behind it.

    The first convolution, of few channels, is float32 in every precision.
    """

    expected: ClassVar[Parts] = {
        "conv1": (nn.Conv2d,),
        "norm1": (nn.LayerNorm, nn.Identity),
        "act": (nn.GELU, nn.Identity),
        "conv2": (nn.Conv2d, nn.Identity),
        "norm2": (nn.LayerNorm, nn.Identity),
    }

    def __init__(self, stem: Stem, precision: str) -> None:
        super().__init__(stem, precision)
        self.in_chans, self.gives_map = stem.conv1.in_channels, isinstance(stem, MapStem)
        parts = [("1", stem.conv1, stem.norm1), ("2", stem.conv2, stem.norm2)]
        convs = [(number, conv, norm) for number, conv, norm in parts if isinstance(conv, nn.Conv2d)]
        self.geometry = {
            number: (conv.kernel_size[0], conv.stride[0], int(conv.padding[0])) for number, conv, _ in convs
        }
        self.eps = {number: norm.eps for number, _, norm in convs if isinstance(norm, nn.LayerNorm)}

    def pack(self) -> None:
        self.packed: dict[str, Tensor] = {}
        if self.is_packable():
            self.packed["1"] = pack_convolution(*self.affine("conv1"), "float32")
            if "2" in self.geometry:
                self.packed["2"] = self.pack_layer("conv2")

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing():
            check_image(x, self.in_chans, "Stem")
        self.refuse_gradients(x)
        with torch.no_grad():
            for number in self.geometry:
                y = self._convolve(x, number, gelu=number == "1" and "2" in self.geometry)
                x = y.permute(0, 3, 1, 2)
            return x if self.gives_map else y

    def _convolve(self, x: Tensor, number: str, gelu: bool) -> Tensor:
        """Map to tokens."""
        weight, bias = self.affine(f"conv{number}")
        norm = (*self.affine(f"norm{number}"), self.eps[number]) if number in self.eps else None
        geometry = self.geometry[number]
        if self.is_packed(x):
            precision = self.precision if number == "2" else "float32"
            return packed_convolution(x, self.packed[number], len(weight), precision, geometry, norm, gelu)
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last
        y = F.conv2d(x, weight, bias, *geometry[1:]).permute(0, 2, 3, 1)
        y = y if norm is None else F.layer_norm(y, y.shape[-1:], *norm)
        return F.gelu(y) if gelu else y
