"""The two heads of UperNet: a decoder over all feature maps, and a small one that helps training.

Sources: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018 (the decoder); Zhao et al.,
"Pyramid Scene Parsing Network", CVPR 2017 (pyramid pooling); Lin et al., CVPR 2017 (feature pyramid); Long et al.,
CVPR 2015 (the auxiliary head). What is computed, and in which order, is MMSegmentation's, with which the released
segmenters were trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.layers.conv_norm_relu import ConvNormReLU

#: Probability of dropping a channel before the classifier.
DROPOUT = 0.1


class PyramidPooling(nn.ModuleList):
    """Averages over 1, 4, 9, 36 … cells of a map, each mapped to `channels` and resized to the map.

    Args:
        in_channels: C of the map.
        channels: Of each result.
        scales: Cells per row and column.
    """

    def __init__(self, in_channels: int, channels: int, scales: Sequence[int]) -> None:
        super().__init__(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormReLU(in_channels, channels, 1)) for scale in scales
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) → one (B, channels, H, W) per scale."""
        return [resize(pool(x), x.shape[2:]) for pool in self]


class SegmentationHead(nn.Module):
    """Base of a head whose last layer maps `channels` to classes, with dropout before it.

    The order of layers in the constructors is that of optimiser states in checkpoints of runs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dropout = nn.Dropout2d(DROPOUT)

    def reset_classifier(self, num_classes: int) -> None:
        """Create a fresh last layer."""
        self.classifier = nn.Conv2d(self.channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def classify(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) → logits (B, classes, H, W)."""
        return self.classifier(self.dropout(x))


class UperNetDecoder(SegmentationHead):
    """Pyramid pooling over the last map, a feature pyramid down to the first, all levels fused.

    Args:
        in_channels: C of each map, finest first.
        channels: Of everything inside.
        num_classes: Classes.
        pool_scales: See `PyramidPooling`.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, num_classes: int, pool_scales: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__(channels)
        self.reset_classifier(num_classes)
        *finer, last = in_channels
        self.psp_modules = PyramidPooling(last, channels, pool_scales)
        self.bottleneck = ConvNormReLU(last + len(pool_scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNormReLU(c, channels, 1) for c in finer)
        self.fpn_convs = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = ConvNormReLU(len(in_channels) * channels, channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), finest first → logits at the resolution of the first."""
        *finer, last = maps
        level = self.bottleneck(torch.cat([last, *self.psp_modules(last)], dim=1))
        levels = [level]
        for x, lateral, smooth in zip(
            reversed(finer), reversed(self.lateral_convs), reversed(self.fpn_convs), strict=True
        ):
            level = lateral(x) + resize(level, x.shape[2:])
            levels.insert(0, smooth(level))
        size = levels[0].shape[2:]
        fused = self.fpn_bottleneck(torch.cat([resize(x, size) for x in levels], dim=1))
        return self.classify(fused)


class FCNHead(SegmentationHead):
    """One convolution and a classifier on one of the maps.

    Args:
        in_channels: C of each map, finest first.
        channels: Between the two.
        num_classes: Classes.
        level: Index of the map.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int, level: int = 2) -> None:
        super().__init__(channels)
        self.level = level
        self.convs = nn.Sequential(ConvNormReLU(in_channels[level], channels, 3))
        self.reset_classifier(num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), finest first → logits at the resolution of the one."""
        return self.classify(self.convs(maps[self.level]))


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: (B, C, H, W) → (B, C, *size)."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
