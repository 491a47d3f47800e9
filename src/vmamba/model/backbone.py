"""`VMamba`: stem, four stages, head, with the model contract of timm."""

# No postponed annotations here: torch.fx would hand them to TorchScript as strings.
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_device_dtype, trunc_normal_
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.layers import SS2D, Block, ConvDownsample, MapStem, PatchMerging
from vmamba.model.config import VMambaConfig


class Stage(nn.Module):
    """Downsampling (identity in the first stage), then blocks: (B, C, H, W) → (B, C', H', W'), channels-last memory."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x.permute(0, 2, 3, 1))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.permute(0, 3, 1, 2)


def ss2d_options(config: VMambaConfig) -> dict[str, Any]:
    """Keywords of `SS2D`."""
    return {
        "d_state": config.d_state,
        "ssm_ratio": config.ssm_ratio,
        "dt_rank": config.dt_rank,
        "act": config.ssm_act,
        "conv": config.ssm_conv,
        "conv_bias": config.ssm_conv_bias,
        "scan": config.scan,
        "gate": config.gate,
        "gate_act": config.gate_act,
        "out_norm": config.out_norm,
        "out_act": config.out_act,
        "init": config.ssm_init,
    }


def build_stages(config: VMambaConfig, **factory: Any) -> list[Stage]:
    """The stages of a configuration."""
    rates = calculate_drop_path_rates(config.drop_path_rate, config.depths, stagewise=True)
    stages, in_dim = [], config.dims[0]
    for i, dim in enumerate(config.dims):
        downsample: nn.Module = nn.Identity()
        if i and config.downsample == "patch_merging":
            downsample = PatchMerging(in_dim, dim, **factory)
        elif i:
            kernel_size = {"conv3x3": 3, "conv2x2": 2}[config.downsample]
            downsample = ConvDownsample(in_dim, dim, kernel_size=kernel_size, **factory)
        blocks = [
            Block(
                dim,
                mlp_ratio=config.mlp_ratio,
                mlp_act=config.mlp_act,
                drop_path=rate,
                **ss2d_options(config),
                **factory,
            )
            for rate in rates[i]
        ]
        stages.append(Stage(downsample, blocks))
        in_dim = dim
    return stages


class VMamba(nn.Module):
    """VMamba (Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024).

    Images are (B, in_chans, H, W) of any size from 32×32 up, square or not. Inside, tokens are channels-last; feature
    maps are handed out as (B, C, H', W') with strides 4, 8, 16 and 32.

    Args:
        config: The architecture.
        global_pool: Pooling before the classifier, a name of `timm.layers.SelectAdaptivePool2d`.
        drop_rate: Dropout before the classifier.
        stage_norms: Give every stage a LayerNorm of its own for feature maps, as detection and segmentation
            backbones have; `forward_intermediates(norm=True)` applies them.
        device: Where to create the parameters.
        dtype: Their dtype.
    """

    def __init__(
        self,
        config: VMambaConfig = VMambaConfig(),  # noqa: B008 (frozen)
        *,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        stage_norms: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.num_classes, self.in_chans = config.num_classes, config.in_chans
        self.drop_rate = drop_rate
        self.output_fmt = "NCHW"
        dims = config.dims
        self.num_features = self.head_hidden_size = dims[-1]

        overlapping = config.stem == "overlapping"
        self.stem = MapStem(config.in_chans, dims[0], overlapping=overlapping, norm=config.patch_norm, **factory)
        self.pos_embed: nn.Parameter | None = None
        if config.pos_embed_size is not None:
            size = config.pos_embed_size // 4
            self.pos_embed = nn.Parameter(torch.empty(1, dims[0], size, size, **factory))
        self.stages = nn.Sequential(*self.build_stages(config, **factory))
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.stage_norms = nn.ModuleList(nn.LayerNorm(dim, **factory) for dim in dims) if stage_norms else None
        self.norm: nn.Module = nn.LayerNorm(dims[-1], **factory)
        self.head = ClassifierHead(dims[-1], config.num_classes, pool_type=global_pool, drop_rate=drop_rate, **factory)
        if not self.norm.weight.is_meta:  # values that are not there take time, too
            self.init_weights()

    def build_stages(self, config: VMambaConfig, **factory: Any) -> list[Stage]:
        """The stages, for relatives that have others."""
        return build_stages(config, **factory)

    def init_weights(self) -> None:
        """(Re-)initialise every parameter; also after ``to_empty``."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)):
                module.reset_parameters()
            elif isinstance(module, SS2D):
                module.reset_scan_parameters()
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised map of the last stage, (B, dims[-1], H/32, W/32)."""
        return self.forward_tokens(self.stem(x))

    def forward_tokens(self, x: Tensor) -> Tensor:
        """The rest of `forward_features`, for the stem's tokens (B, dims[0], H/4, W/4)."""
        x = self.stages(self._positioned(x))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # LayerNorm is of the last dimension

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of `forward_features`' map, or its pooled features (B, dims[-1])."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of stages.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Which stages: the last n for an int, those listed, or all.
            norm: Normalise the maps: every one with the stage norms where the model has them, else the last stage's
                with the final norm.
            stop_early: Do not run stages after the last one asked for.
            output_fmt: ``"NCHW"`` or ``"NHWC"``.
            intermediates_only: Return the maps alone.

        Returns:
            (final map, maps), or the maps alone. The final map is normalised only if all stages ran.

        Raises:
            ValueError: For another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        x = self._positioned(self.stem(x))
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                feature = self._normalised(x, i) if norm else x
                maps.append(feature if output_fmt == "NCHW" else feature.permute(0, 2, 3, 1))
        if intermediates_only:
            return maps
        return (norm_map(self.norm, x) if i == len(self.feature_info) - 1 else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages, the norms and the head that the maps asked for do not need: no parameter stays idle."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if self.stage_norms is not None:
            norms = list(self.stage_norms)[: last + 1]
            self.stage_norms = nn.ModuleList(norm if i in take else nn.Identity() for i, norm in enumerate(norms))
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or shortened or self.stage_norms is not None:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return list(take)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of `num_classes` (0 for none), and the pooling where given."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        self.num_classes = num_classes
        pool = self.head.global_pool.pool_type if global_pool is None else global_pool
        factory = get_device_dtype(self)
        head = ClassifierHead(self.num_features, num_classes, pool_type=pool, drop_rate=self.drop_rate, **factory)
        self.head = head.train(self.training)
        if num_classes:
            trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass of training instead of keeping their activations."""
        for stage in self.stages.children():
            cast(Stage, stage).grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem|^pos_embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """State parameters and the position embedding: A, the skip D, and the bias of Δ."""
        leaves = ("A_log", "D", "dt_proj_bias", "pos_embed")
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in leaves}

    def _positioned(self, x: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x = x + F.interpolate(self.pos_embed, size=x.shape[2:], mode="bicubic", align_corners=False)
        return x

    def _normalised(self, x: Tensor, stage: int) -> Tensor:
        if self.stage_norms is not None:
            return norm_map(self.stage_norms[stage], x)
        return norm_map(self.norm, x) if stage == len(self.feature_info) - 1 else x


def norm_map(norm: nn.Module, x: Tensor) -> Tensor:
    """A LayerNorm over the channels of a map (B, C, H, W); costs no copy in channels-last memory."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def nested_groups(backbone: VMamba, prefix: str, coarse: bool = False) -> dict[str, Any]:
    """Layer groups of a model whose attribute `prefix` is a backbone; timm puts its other layers last."""
    groups, inner = backbone.group_matcher(coarse), rf"^{re.escape(prefix)}\."
    blocks = groups["blocks"]
    listed = [(blocks, None)] if isinstance(blocks, str) else blocks
    return {
        "stem": groups["stem"].replace("^", inner),
        "blocks": [(pattern.replace("^", inner), place) for pattern, place in listed],
    }
