"""VMamba in Hugging Face transformers: importing this module registers it with the Auto classes as ``"vmamba"``.

`VMambaBackbone` fits every head that takes a ``backbone_config``: UperNet, Mask2Former, DETR, RT-DETR and others.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vmamba.model.config
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.reading import Weights
from vmamba.errors import MissingPackageError
from vmamba.layers.ss2d import SS2D
from vmamba.model.backbone import VMamba, norm_map
from vmamba.zoo import model_from_checkpoint

try:
    from huggingface_hub.dataclasses import strict
    from timm.data.transforms import str_to_pil_interp
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        BitImageProcessor,
        BitImageProcessorPil,
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
    raise MissingPackageError("transformers (5.4 or newer)", "transformers") from None

#: Of our configuration; the number of classes is transformers' ``num_labels``.
_FIELDS = [f for f in dataclasses.fields(vmamba.model.config.VMambaConfig) if f.name != "num_classes"]
_TYPES = typing.get_type_hints(vmamba.model.config.VMambaConfig)
#: JSON has lists where we have tuples, and integers among the floats.
_IN_JSON = {tuple[int, ...]: list[int] | tuple[int, ...], float: float | int}

_Architecture: Any = type(
    "_Architecture",
    (PreTrainedConfig,),
    {
        "__doc__": "transformers' configuration with the fields of ours.",
        "__module__": __name__,
        "__annotations__": {f.name: _IN_JSON.get(_TYPES[f.name], _TYPES[f.name]) for f in _FIELDS},
        **{f.name: f.default for f in _FIELDS},
    },
)


@strict
class VMambaConfig(BackboneConfigMixin, _Architecture):
    """The architecture (see `vmamba.VMambaConfig` for the fields) and which stages a backbone hands out.

    Attributes:
        stage_norms: A LayerNorm of its own for each map that a `VMambaBackbone` hands out, as in the authors'
            detectors and segmenters (``outnorm``).
        preprocessing: Of images, fields of `vmamba.checkpoints.info.Preprocessing`; None for ImageNet's.
        out_features: Stages that a backbone hands out: ``"stem"``, ``"stage1"`` … ``"stage4"``; the last by default.
        out_indices: The same as indices into these names.
    """

    model_type = "vmamba"
    attribute_map = {"num_channels": "in_chans", "hidden_sizes": "dims"}  # noqa: RUF012 (theirs)

    stage_norms: bool = True
    initializer_range: float = 0.02
    preprocessing: dict[str, Any] | None = None
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
        values = {field.name: getattr(self, field.name) for field in _FIELDS}
        return vmamba.model.config.VMambaConfig(num_classes=num_classes, **values)

    @classmethod
    def from_architecture(cls, config: vmamba.model.config.VMambaConfig, **options: Any) -> VMambaConfig:
        """The same architecture as a transformers configuration; `options` are its other fields."""
        values = {field.name: getattr(config, field.name) for field in _FIELDS}
        return cls(**values, **options)

    def image_processor(self) -> BitImageProcessor:
        """Preprocessing of the validation in training: resize the short side, crop the centre, normalise."""
        prepare = Preprocessing(**(self.preprocessing or {}))
        size = prepare.image_size or 224
        return BitImageProcessor(
            size={"shortest_edge": int(size / prepare.crop_pct)},
            crop_size={"height": size, "width": size},
            resample=str_to_pil_interp(prepare.interpolation),
            image_mean=list(prepare.mean),
            image_std=list(prepare.std),
        )


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
        maps = [self._positioned(self.stem(x))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps


class VMambaPreTrainedModel(PreTrainedModel):
    """Common base of the models."""

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

    @classmethod
    def from_checkpoint(
        cls, checkpoint: str | Path, name: str | None = None, *, weights: Weights = "auto"
    ) -> VMambaForImageClassification:
        """The classifier in a checkpoint of ours or the authors', with its class names and preprocessing.

        Args:
            checkpoint: See `vmamba.zoo.model_from_checkpoint`.
            name: Likewise.
            weights: Likewise.

        Raises:
            CheckpointError: If it cannot be read, or fits no known model.
        """
        ours = model_from_checkpoint(checkpoint, name, weights=weights)
        info: Any = ours.info
        names = info.class_names or [f"LABEL_{i}" for i in range(ours.num_classes)]
        config = VMambaConfig.from_architecture(
            ours.config,
            id2label=dict(enumerate(names)),
            label2id={label: i for i, label in enumerate(names)},
            preprocessing=dataclasses.asdict(info.preprocessing) if info.preprocessing else None,
        )
        model = cls(config)
        model.vmamba.load_state_dict(ours.state_dict())
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Write weights and configuration, and the image processor that pipelines need."""
        super().save_pretrained(save_directory, *args, **options)
        self.config.image_processor().save_pretrained(save_directory)

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
AutoImageProcessor.register(
    VMambaConfig,
    image_processor_classes={"torchvision": BitImageProcessor, "pil": BitImageProcessorPil},
    exist_ok=True,
)
AutoBackbone.register(VMambaConfig, VMambaBackbone, exist_ok=True)
