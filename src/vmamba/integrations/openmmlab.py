"""VMamba as a backbone of OpenMMLab's toolboxes (MMDetection 3, MMSegmentation 1, and whatever builds on MMEngine).

In a configuration file: ``custom_imports = dict(imports=["vmamba.integrations.openmmlab"])``, then
``backbone=dict(type="VMamba", model="vmamba_tiny_s1l8", pretrained="vssm1_tiny_0230s_ckpt_epoch_264.pth")``. The
authors' configuration files work as they are: their ``MM_VSSM`` is registered too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

import vmamba.model.backbone
from vmamba.checkpoints.download import download
from vmamba.checkpoints.loading import load_weights
from vmamba.checkpoints.names import to_our_names
from vmamba.checkpoints.reading import read_checkpoint
from vmamba.errors import MissingPackageError, OptionError
from vmamba.model.config import VMambaConfig
from vmamba.zoo import create_model

try:
    from mmengine.logging import print_log
    from mmengine.model import BaseModule, initialize
    from mmengine.registry import MODELS
except ImportError:
    raise MissingPackageError("mmengine") from None

#: What stays of the Swin Transformer in configuration files that replace it by a VMamba without ``_delete_``.
_SWIN_OPTIONS = {
    "embed_dims", "num_heads", "window_size", "qkv_bias", "qk_scale", "drop_rate", "attn_drop_rate", "convert_weights",
    "pretrain_img_size", "strides", "act_cfg", "norm_cfg", "use_abs_pos_embed",
}  # fmt: skip

InitCfg = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@MODELS.register_module(name="VMamba")
class VMamba(BaseModule):
    """A VMamba that hands out normalised maps of its stages: (B, 3, H, W) → tuple of (B, dim, H', W').

    Checkpoints load with the authors' entry names or ours. The weights in `pretrained` or `init_cfg` are read when
    training starts (``init_weights``), not where a whole checkpoint is loaded instead.

    Args:
        model: Name, one of ``vmamba models``; None to give the architecture by `options` alone.
        out_indices: Stages whose maps are handed out.
        pretrained: Checkpoint of a classifier, the authors' or ours.
        grad_checkpointing: Recompute blocks in the backward pass.
        frozen_stages: The stem and this many stages are not trained and stay in evaluation mode; 0 for the stem alone,
            -1 for nothing.
        with_cp: The same as `grad_checkpointing`, as OpenMMLab's backbones call it.
        init_cfg: MMEngine's initialisation. ``dict(type="Pretrained", checkpoint=…, prefix=…)`` is the same as
            `pretrained`, from a file or an address.
        **options: Fields of `vmamba.VMambaConfig`: ``drop_path_rate=0.2`` …

    Raises:
        OptionError: For impossible options, or weights given twice.
    """

    def __init__(
        self,
        model: str | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | Path | None = None,
        grad_checkpointing: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: InitCfg | None = None,
        **options: Any,
    ) -> None:
        super().__init__(init_cfg)
        if model is None:
            config = VMambaConfig.from_dict(options)
        else:
            config = cast(vmamba.model.backbone.VMamba, create_model(model, num_classes=0, **options)).config
        if not -1 <= frozen_stages <= len(config.depths):
            raise OptionError(f"frozen_stages must be from -1 to {len(config.depths)}, got {frozen_stages}")
        if pretrained and any(cfg.get("type") == "Pretrained" for cfg in self._init_cfgs()):
            raise OptionError("give either pretrained or an init_cfg of type Pretrained, not both")
        self.out_indices = tuple(out_indices)
        self.pretrained = pretrained
        self.frozen_stages = frozen_stages
        self.vmamba = vmamba.model.backbone.VMamba(
            dataclasses.replace(config, num_classes=0, dims=tuple(config.dims)), stage_norms=True
        )
        self.vmamba.prune_intermediate_layers(list(self.out_indices), prune_norm=True)
        self.vmamba.set_grad_checkpointing(grad_checkpointing or with_cp)
        self.register_load_state_dict_pre_hook(_translate)
        for parameter in self._frozen_parameters():
            parameter.requires_grad_(False)

    def init_weights(self) -> None:
        """Fresh weights, or those in `pretrained` or `init_cfg`; called by the runner before training.

        Raises:
            CheckpointError: If the checkpoint cannot be read or does not fit.
            DownloadError: If it cannot be fetched.
        """
        self.vmamba.init_weights()
        if self.pretrained:
            load_weights(self.vmamba, self.pretrained)
        for cfg in self._init_cfgs():
            if cfg.get("type") == "Pretrained":
                load_weights(self.vmamba, _pretrained_weights(cfg))
            else:
                initialize(self, dict(cfg))
        self._is_init = True

    def train(self, mode: bool = True) -> VMamba:
        """Set training or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.vmamba.forward_intermediates(
            x, indices=list(self.out_indices), norm=True, stop_early=True, intermediates_only=True
        )
        return tuple(cast(list[Tensor], maps))

    def _init_cfgs(self) -> list[Mapping[str, Any]]:
        cfg = self.init_cfg
        return [] if not cfg else [cfg] if isinstance(cfg, Mapping) else list(cfg)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        norms = self.vmamba.stage_norms
        stages = [*self.vmamba.stages][: self.frozen_stages]
        return [self.vmamba.stem, *stages, *([] if norms is None else list(norms)[: len(stages)])]

    def _frozen_parameters(self) -> list[nn.Parameter]:
        parameters = [p for module in self._frozen_modules() for p in module.parameters()]
        pos_embed = self.vmamba.pos_embed
        return [*parameters, pos_embed] if parameters and isinstance(pos_embed, nn.Parameter) else parameters


@MODELS.register_module(name="MM_VSSM")
class AuthorsBackbone(VMamba):
    """The same with the authors' option names, so that their configuration files need no change.

    Args:
        out_indices: See `VMamba`.
        pretrained: See `VMamba`; where it is given, `init_cfg` is what is left of a Swin Transformer.
        use_checkpoint: See `VMamba`, `grad_checkpointing`.
        frozen_stages: See `VMamba`.
        with_cp: See `VMamba`.
        init_cfg: See `VMamba`. That of a Swin Transformer, whose other options are there too, is left out with a note.
        **options: Of the authors' ``VSSM``; other options of a Swin Transformer have no effect.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | Path | None = None,
        use_checkpoint: bool = False,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: InitCfg | None = None,
        **options: Any,
    ) -> None:
        theirs = {name: value for name, value in options.items() if name not in _SWIN_OPTIONS}
        config = VMambaConfig.from_author_options(theirs)
        if init_cfg and (pretrained or (len(theirs) < len(options) and "swin" in str(init_cfg).lower())):
            note = f"MM_VSSM leaves out init_cfg={init_cfg} of the configuration that it builds on"
            print_log(note, logger="current", level=logging.WARNING)
            init_cfg = None
        super().__init__(
            None,
            out_indices,
            pretrained,
            use_checkpoint,
            frozen_stages,
            with_cp,
            init_cfg,
            **dataclasses.asdict(config),
        )


def _pretrained_weights(cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that an `init_cfg` of type Pretrained names."""
    source = str(cfg["checkpoint"])
    weights = read_checkpoint(download(source) if source.startswith(("http://", "https://")) else source)
    prefix = cfg.get("prefix")
    if not prefix:
        return weights
    prefix = f"{prefix.removesuffix('.')}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _translate(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give the backbone's entries, in the authors' names, ours; before they are loaded."""
    theirs = {n: t for n, t in state_dict.items() if n.startswith(prefix) and not n.startswith(f"{prefix}vmamba.")}
    for name in theirs:
        del state_dict[name]
    ours = to_our_names({name[len(prefix) :]: tensor for name, tensor in theirs.items()})
    present = module.state_dict().keys()
    for name, tensor in ours.items():
        # Norms of stages that this backbone does not hand out, and a classifier, have no place.
        if f"vmamba.{name}" in present or not name.startswith(("stage_norms.", "norm.", "head.")):
            state_dict[f"{prefix}vmamba.{name}"] = tensor
