"""UperNet around VMamba: the heads of transformers, the computation and losses of MMSegmentation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.data.label_maps import IGNORE_INDEX
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig

_AUXILIARY_WEIGHT = 0.4
_DROPOUT = 0.1


@dataclass(frozen=True)
class UperNetConfig:
    """Architecture of a `UperNet`; the defaults are the authors'.

    Attributes:
        backbone: Its `num_classes` is ignored.
        classes: Their names.
        channels: Of the decoder.
        auxiliary_channels: Of the auxiliary head, which helps training and does nothing else.
        pool_scales: Cells per side of the pyramid pooling over the last map.
    """

    backbone: VMambaConfig
    classes: tuple[str, ...]
    channels: int = 512
    auxiliary_channels: int = 256
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)


class UperNet(nn.Module):
    """UperNet (Xiao et al. 2018); entries are named as in `transformers.UperNetForSemanticSegmentation`.

    ``model(images)`` gives logits; ``model(images, labels)`` a dictionary of losses.

    Args:
        config: The architecture.
        device: Where to create the parameters.
    """

    task: ClassVar[str] = "segmentation"

    def __init__(self, config: UperNetConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        import vmamba.integrations.transformers as integration  # says which extra is missing

        logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
        import transformers

        if len(config.backbone.dims) != 4:
            raise OptionError(f"UperNet needs a backbone of 4 stages, got {len(config.backbone.dims)}")
        stages = ["stage1", "stage2", "stage3", "stage4"]
        settings = transformers.UperNetConfig(
            backbone_config=integration.VMambaConfig.from_architecture(config.backbone, out_features=stages),
            hidden_size=config.channels,
            auxiliary_channels=config.auxiliary_channels,
            pool_scales=list(config.pool_scales),
            num_labels=len(config.classes),
        )
        with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
            whole = transformers.UperNetForSemanticSegmentation(settings)
            self.config = config
            self.backbone, self.decode_head, self.auxiliary_head = (
                whole.backbone,
                whole.decode_head,
                whole.auxiliary_head,
            )
            for module in (*self.decode_head.modules(), *self.auxiliary_head.modules()):
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            self.reset_classes(config.classes)

    def reset_classes(self, classes: Sequence[str]) -> None:
        """Fresh last layers, for other classes."""
        self.config = dataclasses.replace(self.config, classes=tuple(classes))
        for head in (self.decode_head, self.auxiliary_head):
            head.classifier = _Classifier(head.classifier.in_channels, len(classes), 1)
            nn.init.normal_(head.classifier.weight, std=0.01)
            nn.init.zeros_(head.classifier.bias)

    @property
    def vmamba(self) -> VMamba:
        """The backbone itself."""
        return self.backbone.vmamba

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits, or losses where there are labels.

        Args:
            images: Normalised, float (B, 3, H, W), of any size.
            labels: int64 (B, H, W), `IGNORE_INDEX` where there is none.

        Returns:
            float (B, classes, H, W); or ``decode`` and ``auxiliary``, whose sum is to be minimised, and the share of
            labelled pixels that are ``right``.
        """
        maps = self.features(images)
        logits = resize(self.decode_head(maps), images.shape[2:])
        if labels is None:
            return logits
        auxiliary = resize(self.auxiliary_head(maps), images.shape[2:])
        known = labels != IGNORE_INDEX
        right = ((logits.argmax(dim=1) == labels) & known).sum() / known.sum().clamp(min=1)
        return {
            "decode": _cross_entropy(logits, labels),
            "auxiliary": _AUXILIARY_WEIGHT * _cross_entropy(auxiliary, labels),
            "right": right.detach(),
        }

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """Maps of the four stages, (B, dim, H', W')."""
        maps: Sequence[Tensor] = self.backbone(images).feature_maps
        return maps

    def coarse(self, images: Tensor) -> Tensor:
        """Logits at a quarter of the resolution: (B, classes, ⌈H/4⌉, ⌈W/4⌉)."""
        return self.decode_head(self.features(images))

    def no_weight_decay(self) -> set[str]:
        """Of the backbone; see `VMamba.no_weight_decay`."""
        return {f"backbone.vmamba.{name}" for name in self.vmamba.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `VMamba.set_grad_checkpointing`."""
        self.vmamba.set_grad_checkpointing(enable)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned: (B, C, H, W) → (B, C, *size)."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


class _Classifier(nn.Conv2d):
    """The last convolution, with dropout of whole channels before it, which transformers leaves out."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout2d(x, _DROPOUT, self.training))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over all pixels, those without a label counting as zero, as in MMSegmentation."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum") / labels.numel()
