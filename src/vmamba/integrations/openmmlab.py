"""VMamba as a backbone of OpenMMLab's toolboxes (MMDetection 3, MMSegmentation 1, and whatever builds on MMEngine).

In a configuration file: ``custom_imports = dict(imports=["vmamba.integrations.openmmlab"])``, then
``backbone=dict(type="VMamba", model="vmamba_tiny_s1l8", pretrained="vssm1_tiny_0230s_ckpt_epoch_264.pth")``. The
authors' configuration files work as they are: their ``MM_VSSM`` is registered too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

import vmamba.model.backbone
from vmamba.checkpoints.loading import load_weights
from vmamba.checkpoints.names import to_our_names
from vmamba.model.config import VMambaConfig
from vmamba.zoo import create_model

try:
    from mmengine.model import BaseModule
    from mmengine.registry import MODELS
except ImportError as error:
    raise ValueError(f"this needs MMEngine ({error}): pip install mmengine; see docs/openmmlab.md") from None

#: What stays of the Swin Transformer in configuration files that replace it by a VMamba without ``_delete_``.
_SWIN_OPTIONS = {
    "embed_dims", "num_heads", "window_size", "qkv_bias", "qk_scale", "drop_rate", "attn_drop_rate", "with_cp",
    "convert_weights", "init_cfg", "pretrain_img_size", "strides", "act_cfg", "norm_cfg", "use_abs_pos_embed",
    "frozen_stages",
}  # fmt: skip


@MODELS.register_module(name="VMamba")
class VMamba(BaseModule):
    """A VMamba that hands out normalised maps of its stages: (B, 3, H, W) → tuple of (B, dim, H', W').

    Checkpoints load with the authors' entry names or ours. The weights in `pretrained` are read when training starts
    (``init_weights``), not where a whole checkpoint is loaded instead.

    Args:
        model: Name, one of ``vmamba models``; None to give the architecture by `options` alone.
        out_indices: Stages whose maps are handed out.
        pretrained: Checkpoint of a classifier, the authors' or ours.
        grad_checkpointing: Recompute blocks in the backward pass.
        **options: Fields of `vmamba.VMambaConfig`: ``drop_path_rate=0.2`` …
    """

    def __init__(
        self,
        model: str | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | Path | None = None,
        grad_checkpointing: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if model is None:
            config = VMambaConfig.from_dict(options)
        else:
            config = cast(vmamba.model.backbone.VMamba, create_model(model, num_classes=0, **options)).config
        self.out_indices = tuple(out_indices)
        self.pretrained = pretrained
        self.vmamba = vmamba.model.backbone.VMamba(
            dataclasses.replace(config, num_classes=0, dims=tuple(config.dims)), stage_norms=True
        )
        self.vmamba.prune_intermediate_layers(list(self.out_indices), prune_norm=True)
        self.vmamba.set_grad_checkpointing(grad_checkpointing)
        self.register_load_state_dict_pre_hook(_translate)

    def init_weights(self) -> None:
        """Fresh weights, or those in `pretrained`; called by the runner before training.

        Raises:
            CheckpointError: If the checkpoint cannot be read or does not fit.
        """
        self.vmamba.init_weights()
        if self.pretrained:
            load_weights(self.vmamba, self.pretrained)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.vmamba.forward_intermediates(
            x, indices=list(self.out_indices), norm=True, stop_early=True, intermediates_only=True
        )
        return tuple(cast(list[Tensor], maps))


@MODELS.register_module(name="MM_VSSM")
class AuthorsBackbone(VMamba):
    """The same with the authors' option names, so that their configuration files need no change.

    Args:
        out_indices: See `VMamba`.
        pretrained: See `VMamba`.
        use_checkpoint: See `VMamba`, `grad_checkpointing`.
        **options: Of the authors' ``VSSM``; what is left of a Swin Transformer is not looked at.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | Path | None = None,
        use_checkpoint: bool = False,
        **options: Any,
    ) -> None:
        theirs = {name: value for name, value in options.items() if name not in _SWIN_OPTIONS}
        config = VMambaConfig.from_author_options(theirs)
        super().__init__(None, out_indices, pretrained, use_checkpoint, **dataclasses.asdict(config))


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
