"""Frozen forms of layers that are a matrix product: linear, convolution, transposed convolution, `ConvNormReLU`."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.frozen.layer import FusedLayer, Parts, SealedLayer, is_packable
from vmamba.layers.conv_norm_relu import ConvNormReLU
from vmamba.ops import pack_convolution, packed_convolution, packed_linear
from vmamba.ops.packed import for_packed, pack_linear

Product = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


class PackedLayer(SealedLayer):
    """A linear layer or a dense convolution; on a CPU a product with packed weights, elsewhere called as it is."""

    def __init__(self, layer: Product, precision: str) -> None:
        super().__init__(layer)
        self.precision = precision

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        """True if a layer is a product, and in a form for which weights can be packed."""
        kind, weight = type(layer), layer._parameters.get("weight")
        if kind not in (nn.Linear, nn.Conv2d, nn.ConvTranspose2d) or type(weight) is not nn.Parameter:
            return False
        return (kind is nn.Linear or is_dense(cast(Any, layer))) and is_packable(layer.state_dict().values())

    def pack(self) -> None:
        self.packed: Tensor | None = None
        layer: Product = self.__dict__["layer"]
        if not self.accepts(layer):  # unpickled where the kernels are missing
            return
        weight, bias = layer.weight, layer.bias
        if isinstance(layer, nn.ConvTranspose2d):
            bias = None if bias is None else bias.repeat(layer.kernel_size[0] ** 2)
            weight = cast(nn.Parameter, weight.permute(2, 3, 1, 0).flatten(0, 2))
        pack = pack_convolution if isinstance(layer, nn.Conv2d) else pack_linear
        self.packed = pack(weight, bias, self.precision)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        layer: Product = self.__dict__["layer"]
        packed = self.__dict__["packed"]
        rank = 2 if isinstance(layer, nn.Linear) else 4
        if packed is None or options or not (x.ndim == 4 or x.ndim >= rank == 2) or not for_packed(x):
            return cast(Tensor, layer(x, **options))
        self.refuse_gradients(x)
        with torch.no_grad():
            if isinstance(layer, nn.Linear):
                return packed_linear(x, packed, layer.out_features, self.precision)
            if isinstance(layer, nn.Conv2d):
                return convolve(x, packed, layer.out_channels, self.precision, geometry(layer))
            return self._transposed(x, layer, packed)

    def _transposed(self, x: Tensor, layer: nn.ConvTranspose2d, packed: Tensor) -> Tensor:
        """A product whose every result is a patch."""
        k, channels = layer.kernel_size[0], layer.out_channels
        batch, _, height, width = x.shape
        y = packed_linear(x.permute(0, 2, 3, 1), packed, k * k * channels, self.precision)
        y = y.view(batch, height, width, k, k, channels).transpose(2, 3)
        return y.reshape(batch, height * k, width * k, channels).permute(0, 3, 1, 2)


class FrozenConvNormReLU(FusedLayer):
    """`ConvNormReLU`, the batch norm inside the convolution's weights on a CPU."""

    expected: ClassVar[Parts] = {"conv": (nn.Conv2d,), "batch_norm": (nn.BatchNorm2d,), "activation": (nn.ReLU,)}

    def __init__(self, layer: ConvNormReLU, precision: str) -> None:
        super().__init__(layer, precision)
        self.geometry, self.eps = geometry(layer.conv), layer.batch_norm.eps

    @classmethod
    def refusal(cls, layer: Any) -> str | None:
        reason = super().refusal(layer)
        if reason is None and not (is_dense(layer.conv) and layer.batch_norm.track_running_stats):
            reason = "its convolution or batch norm has other options"
        return reason

    def pack(self) -> None:
        self.packed: dict[str, Tensor] = {}
        if not self.is_packable():
            return
        weight, bias = (None if t is None else t.double() for t in self.affine("conv"))
        scale, shift = (t.double() for t in self.affine("batch_norm"))
        mean, variance = (self.tensors[f"batch_norm.running_{name}"].double() for name in ("mean", "var"))
        scale = scale / (variance + self.eps).sqrt()
        shift = shift + ((0 if bias is None else bias) - mean) * scale
        self.packed["conv"] = pack_convolution(weight * scale[:, None, None, None], shift, self.precision)

    def forward(self, x: Tensor) -> Tensor:
        self.refuse_gradients(x)
        with torch.no_grad():
            weight, bias = self.affine("conv")
            if self.is_packed(x):
                return convolve(x, self.packed["conv"], len(weight), self.precision, self.geometry).relu_()
            x = F.conv2d(x, weight, bias, *self.geometry[1:])
            mean, variance = (self.tensors[f"batch_norm.running_{name}"] for name in ("mean", "var"))
            return F.batch_norm(x, mean, variance, *self.affine("batch_norm"), eps=self.eps).relu_()


def convolve(x: Tensor, packed: Tensor, outputs: int, precision: str, shape: tuple[int, int, int]) -> Tensor:
    """Map (B, C, H, W) to map, in channels-last memory."""
    x = x.contiguous(memory_format=torch.channels_last)
    return packed_convolution(x, packed, outputs, precision, shape).permute(0, 3, 1, 2)


def geometry(conv: nn.Conv2d) -> tuple[int, int, int]:
    """Kernel, stride and padding."""
    return conv.kernel_size[0], conv.stride[0], int(conv.padding[0])


def is_dense(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """True for one group, a square kernel, one stride and zeros around; a transposed one makes patches that touch."""
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    square = (conv.kernel_size, conv.stride, conv.padding) == ((kernel,) * 2, (stride,) * 2, (padding,) * 2)
    touching = type(conv) is nn.Conv2d or (kernel == stride and padding == 0 and conv.output_padding == (0, 0))
    return plain and square and touching
