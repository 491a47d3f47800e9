"""UperNet around VMamba, with the computation and losses of MMSegmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.data.label_maps import IGNORE_INDEX
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba, nested_groups
from vmamba.model.config import VMambaConfig
from vmamba.tasks.segmentation.heads import FCNHead, UperNetDecoder, resize

_AUXILIARY_WEIGHT = 0.4


@dataclass(frozen=True)
class UperNetConfig:
    """Architecture of a `UperNet`; the defaults are the authors'.

    Attributes:
        backbone: Its `num_classes` is ignored.
        classes: Their names.
        channels: Of the decoder.
        auxiliary_channels: Of the auxiliary head, which helps training and does nothing else.
        pool_scales: Cells per row and column of the pyramid pooling over the last map.
    """

    backbone: VMambaConfig
    classes: tuple[str, ...]
    channels: int = 512
    auxiliary_channels: int = 256
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)


class UperNet(nn.Module):
    """UperNet (Xiao et al. 2018) around VMamba.

    ``model(images)`` gives logits; ``model(images, labels)`` a dictionary of losses. Entries are named as in
    `transformers.UperNetForSemanticSegmentation`.

    Args:
        config: The architecture.
        device: Of the parameters.

    Raises:
        OptionError: For a backbone with another number of stages than 4.
    """

    task: ClassVar[str] = "segmentation"

    def __init__(self, config: UperNetConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        dims, classes = config.backbone.dims, len(config.classes)
        if len(dims) != 4:
            raise OptionError(f"UperNet needs a backbone of 4 stages, got {len(dims)}")
        self.config = config
        with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
            backbone = VMamba(config.backbone, stage_norms=True)
            backbone.prune_intermediate_layers([0, 1, 2, 3], prune_norm=True)
            self.backbone = nn.ModuleDict({"vmamba": backbone})  # as entries of earlier weights are called
            self.decode_head = UperNetDecoder(dims, config.channels, classes, config.pool_scales)
            self.auxiliary_head = FCNHead(dims, config.auxiliary_channels, classes)

    def reset_classes(self, classes: Sequence[str]) -> None:
        """Fresh last layers, for other classes."""
        self.config = dataclasses.replace(self.config, classes=tuple(classes))
        for head in (self.decode_head, self.auxiliary_head):
            head.reset_classifier(len(classes))

    @property
    def vmamba(self) -> VMamba:
        """The backbone."""
        return cast(VMamba, self.backbone["vmamba"])

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits, or losses where there are labels.

        Args:
            images: Normalised, float (B, 3, H, W), of any size.
            labels: int64 (B, H, W), `IGNORE_INDEX` where there is none.

        Returns:
            float (B, classes, H, W); or ``decode`` and ``auxiliary``, whose sum is to be minimised, and the
            ``accuracy`` over labelled pixels.
        """
        maps = self.features(images)
        logits = resize(self.decode_head(maps), images.shape[2:])
        if labels is None:
            return logits
        auxiliary = resize(self.auxiliary_head(maps), images.shape[2:])
        labelled = labels != IGNORE_INDEX
        accuracy = ((logits.argmax(dim=1) == labels) & labelled).sum() / labelled.sum().clamp(min=1)
        return {
            "decode": _cross_entropy(logits, labels),
            "auxiliary": _AUXILIARY_WEIGHT * _cross_entropy(auxiliary, labels),
            "accuracy": accuracy.detach(),
        }

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised maps of the four stages, (B, dim, H', W')."""
        return cast("list[Tensor]", self.vmamba.forward_intermediates(images, norm=True, intermediates_only=True))

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at a quarter of the resolution: (B, classes, ⌈H/4⌉, ⌈W/4⌉)."""
        return self.decode_head(self.features(images))

    def no_weight_decay(self) -> set[str]:
        """Of the backbone; see `VMamba.no_weight_decay`."""
        return {f"backbone.vmamba.{name}" for name in self.vmamba.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's groups for layer-wise learning rates; the heads come last."""
        return nested_groups(self.vmamba, "backbone.vmamba", coarse)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `VMamba.set_grad_checkpointing`."""
        self.vmamba.set_grad_checkpointing(enable)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over all pixels, those without a label counting as zero, as in MMSegmentation."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum") / labels.numel()
