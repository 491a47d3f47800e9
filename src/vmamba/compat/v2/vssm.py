"""The whole network of the second generation, and its form for detectors and segmenters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import calculate_drop_path_rates, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.checkpoints.reading import read_checkpoint
from vmamba.compat.v2.layers import norm_of, to_map, to_tokens
from vmamba.compat.v2.ss2d import VSSBlock
from vmamba.errors import OptionError
from vmamba.layers import PatchMerging

_DEPTHS = (2, 2, 9, 2)
_DIMS = (96, 192, 384, 768)


class VSSM(nn.Module):
    """VMamba by the authors' names: images (B, in_chans, H, W) → logits (B, num_classes).

    Args:
        patch_size: 4; the stem's stride.
        in_chans: Channels of the image.
        num_classes: Classes.
        depths: Blocks of each stage.
        dims: Channels of each stage, or of the first, doubled from stage to stage.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0 at the first.
        patch_norm: Normalise in the stem.
        norm_layer: ``"ln"`` (tokens, channels last), ``"ln2d"`` or ``"bn"`` (maps).
        downsample_version: ``"v1"`` patch merging, ``"v2"`` 2×2 or ``"v3"`` 3×3 convolution, ``"none"``.
        patchembed_version: ``"v1"`` patches, ``"v2"`` overlapping convolutions.
        use_checkpoint: Recompute blocks in the backward pass.
        posembed: Add a position embedding.
        imgsize: Size of the image that it is for.
        **kwargs: Arguments of `VSSBlock` (``ssm_…``, ``forward_type``, ``mlp_…``, ``gmlp``); others are ignored, as the
            authors' class does.

    Raises:
        OptionError: For an option that no released code knows.
    """

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = _DEPTHS,
        dims: int | Sequence[int] = _DIMS,
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str = "silu",
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        forward_type: str = "v2",
        mlp_ratio: float = 4.0,
        mlp_act_layer: str = "gelu",
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        norm_layer: str = "LN",
        downsample_version: str = "v2",
        patchembed_version: str = "v1",
        use_checkpoint: bool = False,
        posembed: bool = False,
        imgsize: int = 224,
        _SS2D: Callable[..., nn.Module] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        self.channel_first = norm_layer.lower() in ("bn", "ln2d")
        self.num_classes, self.num_layers, self.num_features = num_classes, len(depths), self.dims[-1]
        norm = norm_of(norm_layer, self.channel_first)
        self.pos_embed: nn.Parameter | None = None
        if posembed:
            cells = imgsize // patch_size
            self.pos_embed = nn.Parameter(torch.zeros(1, self.dims[0], cells, cells))
            trunc_normal_(self.pos_embed, std=0.02)
        self.patch_embed = self._patch_embed(patchembed_version, in_chans, patch_size, norm if patch_norm else None)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        block: dict[str, Any] = {
            "norm_layer": norm,
            "channel_first": self.channel_first,
            "ssm_d_state": ssm_d_state,
            "ssm_ratio": ssm_ratio,
            "ssm_dt_rank": ssm_dt_rank,
            "ssm_act_layer": ssm_act_layer,
            "ssm_conv": ssm_conv,
            "ssm_conv_bias": ssm_conv_bias,
            "ssm_drop_rate": ssm_drop_rate,
            "ssm_init": ssm_init,
            "forward_type": forward_type,
            "mlp_ratio": mlp_ratio,
            "mlp_act_layer": mlp_act_layer,
            "mlp_drop_rate": mlp_drop_rate,
            "gmlp": gmlp,
            "use_checkpoint": use_checkpoint,
        }
        if _SS2D is not None:
            block["_SS2D"] = _SS2D
        self.layers = nn.ModuleList()
        for i, stage_rates in enumerate(rates):
            last = i == len(depths) - 1
            self.layers.append(
                nn.Sequential(
                    OrderedDict(
                        blocks=nn.Sequential(*(VSSBlock(self.dims[i], rate, **block) for rate in stage_rates)),
                        downsample=nn.Identity() if last else self._downsample(downsample_version, i, norm),
                    )
                )
            )
        self.classifier: nn.Module = nn.Sequential(
            OrderedDict(
                norm=norm(self.num_features),
                permute=to_map(self.channel_first),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(1),
                head=nn.Linear(self.num_features, num_classes),
            )
        )
        self.apply(_init_weights)

    def _patch_embed(
        self, version: str, in_chans: int, patch_size: int, norm: Callable[..., nn.Module] | None
    ) -> nn.Module:
        dim, tokens, maps = self.dims[0], to_tokens(self.channel_first), to_map(self.channel_first)

        def normalised(channels: int) -> nn.Module:
            return nn.Identity() if norm is None else norm(channels)

        if version == "v1":
            return nn.Sequential(nn.Conv2d(in_chans, dim, patch_size, patch_size), tokens, normalised(dim))
        if version == "v2":
            stride = patch_size // 2
            # The norms are of the tokens; where there are none, the layout changes once, at the end.
            between = nn.Identity() if norm is None else tokens
            return nn.Sequential(
                nn.Conv2d(in_chans, dim // 2, stride + 1, stride, 1),
                between,
                normalised(dim // 2),
                nn.Identity() if norm is None else maps,
                nn.GELU(),
                nn.Conv2d(dim // 2, dim, stride + 1, stride, 1),
                tokens,
                normalised(dim),
            )
        raise OptionError(f"patchembed_version must be v1 or v2, got {version!r}")

    def _downsample(self, version: str, stage: int, norm: Callable[..., nn.Module]) -> nn.Module:
        dim, out_dim = self.dims[stage], self.dims[stage + 1]
        if version == "none":
            return nn.Identity()
        if version == "v1" and not self.channel_first:
            return PatchMerging(dim, out_dim)
        if version in ("v2", "v3"):
            kernel, padding = (2, 0) if version == "v2" else (3, 1)
            convolution = nn.Conv2d(dim, out_dim, kernel, 2, padding)
            return nn.Sequential(to_map(self.channel_first), convolution, to_tokens(self.channel_first), norm(out_dim))
        raise OptionError(f"downsample_version {version!r} is not supported here; choose v2 or v3, or v1 with tokens")

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) → (B, num_classes)."""
        x = self._embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            size = x.shape[2:] if self.channel_first else x.shape[1:3]
            embedding: Tensor = self.pos_embed
            if embedding.shape[2:] != size:
                embedding = F.interpolate(embedding, size=size, mode="bicubic", align_corners=False)
            x = x + (embedding if self.channel_first else embedding.permute(0, 2, 3, 1))
        return x


class Backbone_VSSM(VSSM):
    """Maps of stages, each normalised, for detectors and segmenters: (B, C, H, W) → [(B, dims[i], H/2^(i+2), …), …].

    Args:
        out_indices: Stages whose maps are returned.
        pretrained: Weights to load, those of a classifier too, or None.
        norm_layer: See `VSSM`.
        **kwargs: Arguments of `VSSM`.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | Path | None = None,
        norm_layer: str = "ln",
        **kwargs: Any,
    ) -> None:
        super().__init__(norm_layer=norm_layer, **kwargs)
        self.out_indices = tuple(out_indices)
        norm = norm_of(norm_layer, self.channel_first)
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", norm(self.dims[i]))
        del self.classifier
        if pretrained is not None:
            self.load_state_dict(read_checkpoint(pretrained, "model"), strict=False)

    def forward(self, x: Tensor) -> Any:
        """(B, in_chans, H, W) → the maps (B, C, H', W') of `out_indices`."""
        x = self._embed(x)
        maps = []
        for i, layer in enumerate(self.layers):
            stage = cast(Any, layer)
            x = stage.blocks(x)
            if i in self.out_indices:
                y = self.get_submodule(f"outnorm{i}")(x)
                maps.append((y if self.channel_first else y.permute(0, 3, 1, 2)).contiguous())
            x = stage.downsample(x)
        return maps if maps else x


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
