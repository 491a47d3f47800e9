"""The parts around the scan. Tokens travel as (B, H, W, C); convolutions see the same memory as channels-last NCHW."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.ops import convolution, pointwise

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}

NORM_EPS = 1e-5


# As in their own modules.
torch.fx.wrap("pointwise")
torch.fx.wrap("convolution")


def is_watched(module: nn.Module) -> bool:
    """Whether somebody has put a hook on a layer, so that it must be called as it is."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class Pointwise(nn.Linear):
    """A linear map of every token: (B, H, W, C) → (B, H, W, C')."""

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear maps of every token with an activation between: (B, H, W, dim) → (B, H, W, dim)."""

    def __init__(self, dim: int, hidden: int, act: str, **factory: Any) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden, **factory)
        self.act = ACTIVATIONS[act]()
        self.fc2 = Pointwise(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DepthwiseConv(nn.Conv2d):
    """Depthwise convolution of tokens, same padding: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, dim: int, kernel_size: int, bias: bool, **factory: Any) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)


class StridedConv(nn.Conv2d):
    """Dense convolution with one stride for both directions: (B, C, H, W) → (B, C', H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        return convolution(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


class SpatialSoftmax(nn.Module):
    """Softmax over the tokens of each channel: (B, H, W, C) → (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(dim=1).view_as(x)


def out_norm(kind: str, dim: int, **factory: Any) -> nn.Module:
    """What follows the scan, by its name in `VMambaConfig.out_norm`."""
    if kind == "layernorm":
        return nn.LayerNorm(dim, eps=NORM_EPS, **factory)
    if kind == "dwconv3x3":
        return DepthwiseConv(dim, 3, bias=False, **factory)
    if kind == "layernorm_dwconv3x3":
        return nn.Sequential(nn.LayerNorm(dim, eps=NORM_EPS, **factory), DepthwiseConv(dim, 3, bias=False, **factory))
    return {"none": nn.Identity, "softmax": SpatialSoftmax, "sigmoid": nn.Sigmoid}[kind]()


def norm2d(dim: int, **factory: Any) -> nn.Module:
    """LayerNorm over the channels of (B, C, H, W), which costs no copy in channels-last memory."""
    return LayerNorm2d(dim, eps=NORM_EPS, **factory)


class Stem(nn.Module):
    """Image to stride-4 tokens: (B, in_chans, H, W) → (B, dim, ⌈H/4⌉, ⌈W/4⌉) in channels-last memory.

    Patches, unlike the overlapping convolutions, leave out a remainder of H or W.
    """

    def __init__(self, in_chans: int, dim: int, overlapping: bool, norm: bool, **factory: Any) -> None:
        super().__init__()
        if overlapping:
            self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **factory)
            self.norm1 = norm2d(dim // 2, **factory) if norm else nn.Identity()
            self.act: nn.Module = nn.GELU()
            self.conv2: nn.Module = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **factory)
            self.norm2 = norm2d(dim, **factory) if norm else nn.Identity()
        else:
            self.conv1 = nn.Conv2d(in_chans, dim, 4, stride=4, **factory)
            self.norm1 = norm2d(dim, **factory) if norm else nn.Identity()
            self.act = self.conv2 = self.norm2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class ConvDownsample(nn.Module):
    """Halve the resolution with a strided convolution: (B, C, H, W) → (B, C', ⌈H/2⌉, ⌈W/2⌉); kernel 2 rounds down."""

    def __init__(self, dim: int, out_dim: int, kernel_size: int, **factory: Any) -> None:
        super().__init__()
        self.conv = StridedConv(dim, out_dim, kernel_size, stride=2, padding=(kernel_size - 1) // 2, **factory)
        self.norm = norm2d(out_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PatchMerging(nn.Module):
    """Halve the resolution by concatenating 2×2 tokens, as Swin does: (B, C, H, W) → (B, C', ⌈H/2⌉, ⌈W/2⌉)."""

    def __init__(self, dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS, **factory)
        self.reduction = Pointwise(4 * dim, out_dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)


def downsample(kind: str, dim: int, out_dim: int, **factory: Any) -> nn.Module:
    """The layer between two stages, by its name in `VMambaConfig.downsample`."""
    if kind == "patch_merging":
        return PatchMerging(dim, out_dim, **factory)
    return ConvDownsample(dim, out_dim, {"conv3x3": 3, "conv2x2": 2}[kind], **factory)
