"""`EfficientVMamba`: scans of every second token in the early stages, convolutions in the late ones.

Source: Pei et al., "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", 2024 (arXiv 2403.09977).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from torch import Tensor, nn

from vmamba.errors import OptionError
from vmamba.layers import PatchMerging
from vmamba.layers.layout import check_tokens
from vmamba.layers.routed_scan import ChannelAttention, StridedSS2D
from vmamba.model.backbone import Stage, VMamba, ss2d_options
from vmamba.model.config import VMambaConfig


@dataclass(frozen=True)
class EfficientVMambaConfig(VMambaConfig):
    """Architecture of an EfficientVMamba. The defaults are `efficient_vmamba_tiny`; `scan` has no meaning here.

    Attributes:
        scan_stages: Stages made of scans, from the first; the others are inverted residuals.
        expansion: Hidden channels of an inverted residual as a multiple of the stage's.

    Raises:
        OptionError: For impossible values.
    """

    dims: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (2, 2, 4, 2)
    d_state: int = 16
    ssm_ratio: float = 2.0
    ssm_conv_bias: bool = True
    gate: bool = True
    mlp_ratio: float = 0.0
    stem: str = "patchify"
    downsample: str = "patch_merging"
    scan_stages: int = 2
    expansion: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, high in (("scan_stages", len(self.dims)), ("expansion", 64)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= high:
                raise OptionError(f"EfficientVMambaConfig: {name} must be an integer from 0 to {high}, got {value!r}")
        if self.expansion < 1 or self.mlp_ratio or self.downsample != "patch_merging":
            raise OptionError(
                "EfficientVMambaConfig: expansion must be at least 1, mlp_ratio 0 and downsample 'patch_merging'"
            )


class ScanConvBlock(nn.Module):
    """``x + drop_path(a(scan(norm(x))) + a(conv(norm(x))))`` on tokens (B, H, W, dim): the paper's EVSS block.

    `scan` is `StridedSS2D`, `conv` a depthwise and a pointwise convolution, `a` a `ChannelAttention` that both share.

    Args:
        dim: Channels.
        drop_path: Probability of leaving out the sum for a sample, in training.
        device: Where to create the parameters.
        dtype: Their dtype.
        **ss2d: Keywords of `StridedSS2D`.
    """

    def __init__(
        self,
        dim: int,
        *,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **ss2d: Any,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.ss2d = StridedSS2D(dim, device=device, dtype=dtype, **ss2d)
        self.conv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype),
            nn.BatchNorm2d(dim, device=device, dtype=dtype),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1, device=device, dtype=dtype),
        )
        self.attention = ChannelAttention(dim, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "ScanConvBlock")
        inner = self.norm(x)
        local = self.conv(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.attention(self.ss2d(inner)) + self.attention(local))


class ResidualBlock(nn.Module):
    """An inverted residual with squeeze and excitation (Sandler et al., "MobileNetV2") on tokens (B, H, W, dim)."""

    def __init__(self, dim: int, *, expansion: int = 4, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        excite = partial(SqueezeExcite, rd_ratio=0.125, rd_round_fn=int)
        self.residual = InvertedResidual(
            dim, dim, exp_ratio=expansion, se_layer=excite, drop_path_rate=drop_path, **factory
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class EfficientVMamba(VMamba):
    """EfficientVMamba (Pei et al., 2024): the contract and the options of `VMamba`.

    The first stages hold `ScanConvBlock`, the last ones inverted residuals. The paper leaves open how wide "S" is and
    how the four subsets are traversed; both follow the released models: dims of 64 … 512, subsets that start in even
    rows by rows, the others by columns, all forward. Blocks have no MLP.
    """

    def build_stages(self, config: VMambaConfig, **factory: Any) -> list[Stage]:
        assert isinstance(config, EfficientVMambaConfig)
        rates = calculate_drop_path_rates(config.drop_path_rate, config.depths, stagewise=True)
        stages = []
        for i, dim in enumerate(config.dims):
            downsample = PatchMerging(config.dims[i - 1], dim, **factory) if i else nn.Identity()
            block: Any = partial(ScanConvBlock, **ss2d_options(config))
            if i >= config.scan_stages:
                block = partial(ResidualBlock, expansion=config.expansion)
            stages.append(Stage(downsample, [block(dim, drop_path=rate, **factory) for rate in rates[i]]))
        return stages


TINY = EfficientVMambaConfig()
SMALL = dataclasses.replace(TINY, dims=(64, 128, 256, 512))
