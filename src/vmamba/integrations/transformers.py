"""VMamba in Hugging Face transformers: importing this module registers it with the Auto classes as ``"vmamba"``.

`VMambaBackbone` fits every head that takes a ``backbone_config``: UperNet, Mask2Former, DETR, RT-DETR and others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import vmamba.model.config
from vmamba.errors import MissingPackageError
from vmamba.layers.ss2d import SS2D
from vmamba.model.backbone import VMamba, norm_map

try:
    from huggingface_hub.dataclasses import strict
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        PreTrainedConfig,
        PreTrainedModel,
        initialization,
    )
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import (
        BackboneOutput,
        BaseModelOutputWithPoolingAndNoAttention,
        ImageClassifierOutputWithNoAttention,
    )
except ImportError:
    raise MissingPackageError("transformers (version 5 or newer)", "transformers") from None


@strict
class VMambaConfig(BackboneConfigMixin, PreTrainedConfig):
    """The architecture (see `vmamba.VMambaConfig` for the fields) and which stages a backbone hands out.

    Attributes:
        stage_norms: A LayerNorm of its own for each map that a `VMambaBackbone` hands out, as in the authors'
            detectors and segmenters (``outnorm``).
        out_features: Stages that a backbone hands out: ``"stem"``, ``"stage1"`` … ``"stage4"``; the last by default.
        out_indices: The same as indices into these names.
    """

    model_type = "vmamba"
    attribute_map = {"num_channels": "in_chans", "hidden_sizes": "dims"}  # noqa: RUF012 (theirs)

    in_chans: int = 3
    dims: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    depths: list[int] | tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    ssm_ratio: float | int = 1.0
    dt_rank: int | str = "auto"
    ssm_act: str = "silu"
    ssm_conv: int = 3
    ssm_conv_bias: bool = False
    ssm_init: str = "mamba"
    scan: str = "cross"
    gate: bool = False
    gate_act: bool = True
    out_act: bool = False
    out_norm: str = "layernorm"
    mlp_ratio: float | int = 4.0
    mlp_act: str = "gelu"
    stem: str = "overlapping"
    downsample: str = "conv3x3"
    patch_norm: bool = True
    pos_embed_size: int | None = None
    drop_path_rate: float | int = 0.0
    stage_norms: bool = True
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_size = self.dims[-1]
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.depths) + 1))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)
        self.architecture()  # impossible values end here

    def architecture(self, num_classes: int = 0) -> vmamba.model.config.VMambaConfig:
        """The configuration of the model inside."""
        names = [field.name for field in dataclasses.fields(vmamba.model.config.VMambaConfig)]
        values = {name: getattr(self, name) for name in names if name != "num_classes"}
        return vmamba.model.config.VMambaConfig(num_classes=num_classes, **values)

    @classmethod
    def from_architecture(cls, config: vmamba.model.config.VMambaConfig, **options: Any) -> VMambaConfig:
        """The same architecture as a transformers configuration; `options` are its other fields."""
        values = dataclasses.asdict(config)
        values.pop("num_classes")
        return cls(**values, **options)


class _Network(VMamba):
    """`VMamba` that also hands out the output of its stem, and lets transformers switch gradient checkpointing."""

    @property
    def gradient_checkpointing(self) -> bool:
        return any(getattr(stage, "grad_checkpointing", False) for stage in self.stages)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.set_grad_checkpointing(enable)

    def hidden_states(self, x: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) → the output of the stem and of every stage, (B, dim, H', W')."""
        maps = [self._embed(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class VMambaPreTrainedModel(PreTrainedModel):
    """What the models have in common."""

    config_class = VMambaConfig
    config: VMambaConfig
    base_model_prefix = "vmamba"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (theirs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            initialization.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.LayerNorm)):
            # Their guard keeps what has been loaded.
            with initialization.guard_torch_init_functions():
                module.reset_parameters()
        elif isinstance(module, SS2D) and not any(
            getattr(p, "_is_hf_initialized", False) for p in module.parameters(recurse=False)
        ):
            module.reset_scan_parameters()
        elif isinstance(module, VMamba) and module.pos_embed is not None:
            initialization.trunc_normal_(module.pos_embed, std=self.config.initializer_range)


class VMambaModel(VMambaPreTrainedModel):
    """VMamba without a classifier: the map of the last stage, and its normalised average."""

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__(config)
        self.vmamba = _Network(config.architecture())
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None, **_: Any
    ) -> Any:
        """Images (B, C, H, W) → last_hidden_state (B, dim, H/32, W/32), pooler_output (B, dim), hidden_states."""
        maps = self.vmamba.hidden_states(pixel_values)
        pooled = self.vmamba.forward_head(norm_map(self.vmamba.norm, maps[-1]), pre_logits=True)
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=maps[-1], pooler_output=pooled, hidden_states=_wanted(self, output_hidden_states, maps)
        )
        return _as_asked(self, output, return_dict)


class VMambaForImageClassification(VMambaPreTrainedModel):
    """VMamba with its classifier; ``config.num_labels`` classes."""

    accepts_loss_kwargs = False

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__(config)
        self.vmamba = _Network(config.architecture(num_classes=config.num_labels))
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Images (B, C, H, W) → logits (B, num_labels), hidden_states, and the loss where there are labels (B,)."""
        maps = self.vmamba.hidden_states(pixel_values)
        logits = self.vmamba.forward_head(norm_map(self.vmamba.norm, maps[-1]))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=_wanted(self, output_hidden_states, maps)
        )
        return _as_asked(self, output, return_dict)


class VMambaBackbone(BackboneMixin, VMambaPreTrainedModel):
    """The maps of the stages in ``config.out_features``, for the heads of other models.

    Stages after the last of these do not exist, nor norms that nobody asks for: every parameter gets a gradient.
    """

    has_attentions = False

    def __init__(self, config: VMambaConfig) -> None:
        super().__init__(config)
        self.num_features = [config.dims[0], *config.dims]
        self.vmamba = _Network(config.architecture(), stage_norms=config.stage_norms)
        stages = [self.stage_names.index(name) - 1 for name in self.out_features if name != "stem"]
        self.vmamba.prune_intermediate_layers(stages or [0], prune_norm=True)
        if not stages:
            self.vmamba.stages, self.vmamba.stage_norms = nn.Sequential(), None
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None, **_: Any
    ) -> Any:
        """Images (B, C, H, W) → feature_maps, one (B, dim, H', W') per stage asked for, and hidden_states."""
        maps = self.vmamba.hidden_states(pixel_values)
        norms: list[nn.Module] = [nn.Identity() for _ in maps]
        if self.vmamba.stage_norms is not None:
            norms[1:] = self.vmamba.stage_norms
        features = tuple(
            norm_map(norm, x)
            for name, norm, x in zip(self.stage_names, norms, maps, strict=False)
            if name in self.out_features
        )
        output = BackboneOutput(feature_maps=features, hidden_states=_wanted(self, output_hidden_states, maps))
        return _as_asked(self, output, return_dict)


def _wanted(model: PreTrainedModel, asked: bool | None, maps: list[Tensor]) -> tuple[Tensor, ...] | None:
    return tuple(maps) if (model.config.output_hidden_states if asked is None else asked) else None


def _as_asked(model: PreTrainedModel, output: Any, return_dict: bool | None) -> Any:
    return output if (model.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


AutoConfig.register("vmamba", VMambaConfig, exist_ok=True)
AutoModel.register(VMambaConfig, VMambaModel, exist_ok=True)
AutoModelForImageClassification.register(VMambaConfig, VMambaForImageClassification, exist_ok=True)
AutoBackbone.register(VMambaConfig, VMambaBackbone, exist_ok=True)
