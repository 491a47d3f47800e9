"""Mask R-CNN around VMamba, built of torchvision's parts, computing what MMDetection computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba, nested_groups
from vmamba.model.config import VMambaConfig
from vmamba.tasks.detection.boxes import ASPECT_RATIOS, IGNORED, anchors, assign, batched_nms, decode, encode, sample
from vmamba.tasks.detection.detections import Detections
from vmamba.tasks.detection.regions import crop_masks, multiscale_roi_align

#: Images are padded to a multiple of this.
PAD_MULTIPLE = 32
_STRIDES = (4, 8, 16, 32, 64)
_BOX_ROI_SIZE, _MASK_ROI_SIZE = 7, 14
#: What offsets from anchors and from proposals are divided by.
_RPN_STDS, _ROI_STDS = (1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)
_RPN_ASSIGNMENT = {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "min_pos_iou": 0.3}
_ROI_ASSIGNMENT = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5}
_RPN_NMS_IOU = 0.7

Size = Sequence[int]
Target = dict[str, Tensor]


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Architecture and thresholds of a `MaskRCNN`; the defaults are the authors'.

    Attributes:
        backbone: Its `num_classes` is ignored.
        classes: Names of the objects to detect.
        channels: Of the feature pyramid and the proposal head.
        box_channels: Hidden units of the box head.
        mask_channels: Of the four convolutions of the mask head.
        proposals: Regions for the second stage, per image.
        samples: Of these, those that it learns from.
        score_threshold: Detections need a score above it.
        overlap_threshold: Of two detections of one class that overlap more, the better one is kept.
        max_detections: Per image.
    """

    backbone: VMambaConfig
    classes: tuple[str, ...]
    channels: int = 256
    box_channels: int = 1024
    mask_channels: int = 256
    proposals: int = 1000
    samples: int = 512
    score_threshold: float = 0.05
    overlap_threshold: float = 0.5
    max_detections: int = 100


class MaskRCNN(nn.Module):
    """Mask R-CNN with a feature pyramid (He et al. 2017; Lin et al. 2017).

    ``model(images)`` gives a list of `Detections`; ``model(images, sizes, targets)`` a dictionary of losses. Each step
    is a method of its own: `features`, `propose`, `classify`, `segment`.

    Args:
        config: The architecture.
        device: Of the parameters.
    """

    task: ClassVar[str] = "detection"

    def __init__(self, config: MaskRCNNConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        if len(config.backbone.dims) != 4:
            raise OptionError(f"Mask R-CNN needs a backbone of 4 stages, got {len(config.backbone.dims)}")
        self.config = config
        channels = config.channels
        with torch.device(device or "cpu") if device is not None else torch.device(torch.get_default_device()):
            self.backbone = VMamba(config.backbone, stage_norms=True)
            self.backbone.prune_intermediate_layers([0, 1, 2, 3], prune_norm=True)
            self.fpn = FeaturePyramidNetwork(list(config.backbone.dims), channels, LastLevelMaxPool())
            self.rpn_head = RPNHead(channels, len(ASPECT_RATIOS))
            self.box_head = TwoMLPHead(channels * _BOX_ROI_SIZE**2, config.box_channels)
            self.mask_head = MaskRCNNHeads(channels, [config.mask_channels] * 4, dilation=1)
            for module in (*self.fpn.modules(), *self.box_head.modules()):
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(cast(Tensor, module.bias))
            self.reset_classes(config.classes)

    def reset_classes(self, classes: Sequence[str]) -> None:
        """Fresh last layers, for other classes."""
        self.config = dataclasses.replace(self.config, classes=tuple(classes))
        hidden, channels = self.config.box_channels, self.config.mask_channels
        self.class_score = nn.Linear(hidden, len(classes) + 1)  # the background is last
        self.box_offset = nn.Linear(hidden, 4 * len(classes))
        self.mask_predictor = MaskRCNNPredictor(channels, channels, len(classes))
        for layer, std in ((self.class_score, 0.01), (self.box_offset, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | None = None, targets: Sequence[Target] | None = None
    ) -> list[Detections] | dict[str, Tensor]:
        """Detections, or losses where there are targets.

        Args:
            images: Normalised, float (B, 3, H, W), of any size; the authors pad to multiples of 32.
            sizes: Height and width of each image without its padding; None where there is none.
            targets: Per image ``boxes`` (G, 4), ``labels`` int64 (G,), ``masks`` (G, h, w).
        """
        sizes = sizes if sizes is not None else [images.shape[2:]] * len(images)
        maps = self.features(images)
        scores, offsets = self.rpn_head(maps)
        regions = self.propose(scores, offsets, sizes)
        if targets is not None:
            proposals = [boxes for boxes, _ in regions]
            return self._proposal_losses(scores, offsets, sizes, targets) | self._losses(maps, proposals, targets)
        return self._detect(maps, regions, sizes)

    def features(self, images: Tensor) -> list[Tensor]:
        """The feature pyramid: strides 4, 8, 16, 32, 64."""
        maps = self.backbone.forward_intermediates(images, norm=True, intermediates_only=True)
        return list(self.fpn({str(i): m for i, m in enumerate(maps)}).values())

    # First stage

    def propose(
        self, scores: Sequence[Tensor], offsets: Sequence[Tensor], sizes: Sequence[Size]
    ) -> list[tuple[Tensor, Tensor]]:
        """Regions worth a look, from the output of ``rpn_head``.

        Args:
            scores: Per level, logits (B, 3, H, W).
            offsets: Per level (B, 12, H, W).
            sizes: Of the images.

        Returns:
            Per image, boxes (P, 4) and their scores (P,), best first.
        """
        nms_pre = 2000 if self.training else 1000
        levels = _anchors(scores)
        proposals = []
        for i, size in enumerate(sizes):
            boxes, values, groups = [], [], []
            for level, (references, score, offset) in enumerate(zip(levels, scores, offsets, strict=True)):
                value, order = _rows(score[i], 1).flatten().sigmoid().sort(descending=True)
                value, order = value[:nms_pre], order[:nms_pre]
                boxes.append(decode(_rows(offset[i], 4)[order], references[order], _RPN_STDS, size)[:, 0])
                values.append(value)
                groups.append(torch.full_like(order, level))
            box, value, group = torch.cat(boxes), torch.cat(values), torch.cat(groups)
            valid = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
            box, value, group = box[valid], value[valid], group[valid]
            keep = batched_nms(box, value, group, _RPN_NMS_IOU)[: self.config.proposals]
            proposals.append((box[keep].detach(), value[keep].detach()))
        return proposals

    def _proposal_losses(
        self, scores: Sequence[Tensor], offsets: Sequence[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        references = torch.cat(_anchors(scores))
        class_loss = box_loss = references.new_zeros(())
        total = 0
        for i, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            score = torch.cat([_rows(level[i], 1).flatten() for level in scores])
            offset = torch.cat([_rows(level[i], 4) for level in offsets])
            inside = torch.cat([_inside(s.shape[2:], stride, size) for s, stride in zip(scores, _STRIDES, strict=True)])
            inside = inside.to(score.device)
            assigned = torch.full((len(references),), IGNORED, device=score.device)
            assigned[inside] = assign(references[inside], target["boxes"], **_RPN_ASSIGNMENT)
            positive, negative = sample(assigned, num=256, pos_fraction=0.5)
            drawn = torch.cat([positive, negative])
            is_object = (assigned[drawn] >= 0).float()
            class_loss = class_loss + F.binary_cross_entropy_with_logits(score[drawn], is_object, reduction="sum")
            expected = encode(target["boxes"][assigned[positive]], references[positive], _RPN_STDS)
            box_loss = box_loss + (offset[positive] - expected).abs().sum()
            total += max(len(positive), 1) + max(len(negative), 1)  # as MMDetection counts
        return {"proposal_class": class_loss / total, "proposal_box": box_loss / total}

    # Second stage

    def classify(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits of regions (R, 5), (R, classes + 1), the background last; and offsets (R, 4 · classes)."""
        hidden = self.box_head(multiscale_roi_align(maps[:4], _STRIDES[:4], regions, _BOX_ROI_SIZE))
        return self.class_score(hidden).float(), self.box_offset(hidden).float()

    def segment(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Mask logits of regions (R, 5) for every class: (R, classes, 28, 28)."""
        pooled = multiscale_roi_align(maps[:4], _STRIDES[:4], regions, _MASK_ROI_SIZE)
        return self.mask_predictor(self.mask_head(pooled)).float()

    def _losses(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        samples = [self._sample(*pair) for pair in zip(proposals, targets, strict=True)]
        regions = torch.cat([F.pad(one.boxes, (1, 0), value=i) for i, one in enumerate(samples)])
        labels = torch.cat([one.labels for one in samples])
        positive = torch.cat([torch.arange(len(one.labels), device=labels.device) < one.positives for one in samples])
        kinds = labels[positive]
        rows = torch.arange(len(kinds), device=kinds.device)
        logits, offsets = self.classify(maps, regions)
        of_kind = offsets.view(len(labels), len(self.config.classes), 4)[positive][rows, kinds]
        masks = self.segment(maps, regions[positive])
        expected = torch.cat([one.masks for one in samples])
        total = max(len(labels), 1)
        return {
            "class": F.cross_entropy(logits, labels, reduction="sum") / total,
            "box": (of_kind - torch.cat([one.offsets for one in samples])).abs().sum() / total,
            "mask": F.binary_cross_entropy_with_logits(masks[rows, kinds], expected) if len(kinds) else masks.sum() * 0,
        }

    def _sample(self, proposals: Tensor, target: Target) -> _Sample:
        """Draw proposals of one image to learn from; the true boxes are proposals, too."""
        truth = target["boxes"]
        of_proposals = assign(proposals, truth, **_ROI_ASSIGNMENT)
        boxes = torch.cat([truth, proposals])
        assigned = torch.cat([torch.arange(len(truth), device=truth.device), of_proposals])
        positive, negative = sample(assigned, self.config.samples, pos_fraction=0.25)
        index = assigned[positive]
        background = torch.full_like(negative, len(self.config.classes))
        return _Sample(
            boxes[torch.cat([positive, negative])],
            torch.cat([target["labels"][index], background]),
            len(positive),
            encode(truth[index], boxes[positive], _ROI_STDS),
            crop_masks(target["masks"], boxes[positive], index, 2 * _MASK_ROI_SIZE),
        )

    def _detect(
        self, maps: Sequence[Tensor], regions: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[Size]
    ) -> list[Detections]:
        config = self.config
        logits, offsets = self.classify(
            maps, torch.cat([F.pad(boxes, (1, 0), value=i) for i, (boxes, _) in enumerate(regions)])
        )
        counts = [boxes.shape[0] for boxes, _ in regions]  # len() would be a constant of an exported model
        kept = []
        for (proposed, _), logit, offset, size in zip(
            regions, logits.split(counts), offsets.split(counts), sizes, strict=True
        ):
            scores = logit.softmax(dim=-1)[:, :-1]
            row, label = (scores > config.score_threshold).nonzero(as_tuple=True)
            box, score = decode(offset, proposed, _ROI_STDS, size)[row, label], scores[row, label]
            keep = batched_nms(box, score, label, config.overlap_threshold)[: config.max_detections]
            kept.append((box[keep], score[keep], label[keep]))
        boxes = torch.cat([F.pad(box, (1, 0), value=i) for i, (box, _, _) in enumerate(kept)])
        labels = torch.cat([label for _, _, label in kept])
        masks = self.segment(maps, boxes)[torch.arange(labels.shape[0], device=labels.device), labels].sigmoid()
        split = masks.split([label.shape[0] for _, _, label in kept])
        return [Detections(*parts, mask) for parts, mask in zip(kept, split, strict=True)]

    def no_weight_decay(self) -> set[str]:
        """Of the backbone; see `VMamba.no_weight_decay`."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's groups for layer-wise learning rates; the heads come last."""
        return nested_groups(self.backbone, "backbone", coarse)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `VMamba.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)


class _Sample(NamedTuple):
    """Proposals of one image that the second stage learns from, the positive ones first.

    Attributes:
        boxes: (S, 4).
        labels: int64 (S,), the background last of the classes.
        positives: Number of positive ones, P.
        offsets: Expected, (P, 4).
        masks: Expected, (P, 28, 28).
    """

    boxes: Tensor
    labels: Tensor
    positives: int
    offsets: Tensor
    masks: Tensor


def _anchors(scores: Sequence[Tensor]) -> list[Tensor]:
    """Anchors of every level, whose scores are (B, 3, H, W)."""
    return [anchors(s.shape[2:], stride, s.device) for s, stride in zip(scores, _STRIDES, strict=True)]


def _rows(level: Tensor, width: int) -> Tensor:
    """(A · width, H, W) → float32 (H · W · A, width), in the order of `anchors`."""
    return level.permute(1, 2, 0).reshape(-1, width).float()


def _inside(grid: Size, stride: int, size: Size) -> Tensor:
    """Mask of a level's anchors: on the image or its own padding, not on what was added to fit the batch."""
    rows, columns = (-(-length // PAD_MULTIPLE) * PAD_MULTIPLE for length in size)
    inside = torch.zeros((*grid, len(ASPECT_RATIOS)), dtype=torch.bool)
    inside[: -(-rows // stride), : -(-columns // stride)] = True
    return inside.flatten()
