"""Mask R-CNN around VMamba, built of torchvision's parts, computing what MMDetection computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.tasks.detection.boxes import (
    ASPECT_RATIOS,
    IGNORED,
    anchors,
    assign,
    crop_masks,
    decode,
    encode,
    paste_masks,
    pool_regions,
    sample,
    suppress,
)

#: Images are padded to a multiple of this.
PAD_MULTIPLE = 32
_STRIDES = (4, 8, 16, 32, 64)
_BOX_SIDE, _MASK_SIDE = 7, 14
_ANCHOR_SPREAD, _BOX_SPREAD = (1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)

Size = Sequence[int]
Target = dict[str, Tensor]


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Architecture and thresholds of a `MaskRCNN`; the defaults are the authors'.

    Attributes:
        backbone: Its `num_classes` is ignored.
        classes: Names of the things to find.
        channels: Of the feature pyramid and the proposal head.
        box_channels: Hidden units of the box head.
        mask_channels: Of the four convolutions of the mask head.
        proposals: Regions that the second stage looks at, per image.
        samples: Of these, how many it learns from.
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


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes: float32 (N, 4), x1, y1, x2, y2 in pixels of the network's input, or of the image after `rescale`.
        scores: float32 (N,).
        labels: int64 (N,), indices into the classes.
        masks: float32 (N, 28, 28), probabilities inside the box.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def to(self, device: torch.device | str) -> Detections:
        """The same on a device."""
        return Detections(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        keep = self.scores >= score
        return Detections(*(getattr(self, field.name)[keep] for field in dataclasses.fields(self)))

    def rescale(self, scale: Sequence[float]) -> Detections:
        """Boxes in pixels of the original image.

        Args:
            scale: Height and width of the network's input as multiples of the image's.
        """
        boxes = self.boxes / self.boxes.new_tensor([scale[1], scale[0], scale[1], scale[0]])
        return dataclasses.replace(self, boxes=boxes)

    def image_masks(self, size: Size) -> Iterator[Tensor]:
        """Masks, bool (H, W), laid over an image of this height and width; one at a time, for images may be large."""
        for i in range(len(self.masks)):
            yield paste_masks(self.masks[i : i + 1], self.boxes[i : i + 1], size)[0]

    def in_image(self, size: Size, scale: Sequence[float] = (1.0, 1.0)) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) and masks, bool (N, H, W), in the pixels of the original image.

        Args:
            size: Its height and width.
            scale: See `rescale`.
        """
        boxes = self.rescale(scale).boxes
        return boxes, paste_masks(self.masks, boxes, size)


class MaskRCNN(nn.Module):
    """Mask R-CNN with a feature pyramid (He et al. 2017; Lin et al. 2017).

    ``model(images)`` gives a list of `Detections`; ``model(images, sizes, targets)`` a dictionary of losses. Each step
    is a method of its own: `features`, `propose`, `classify`, `segment`.

    Args:
        config: The architecture.
        device: Where to create the parameters.
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
            self.box_head = TwoMLPHead(channels * _BOX_SIDE**2, config.box_channels)
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
        per_level = 2000 if self.training else 1000
        levels = [anchors(s.shape[2:], stride, s.device) for s, stride in zip(scores, _STRIDES, strict=True)]
        proposals = []
        for i, size in enumerate(sizes):
            boxes, values, groups = [], [], []
            for level, (references, score, offset) in enumerate(zip(levels, scores, offsets, strict=True)):
                score_of, offset_of = _rows(score[i], 1).flatten().sigmoid(), _rows(offset[i], 4)
                value, order = score_of.sort(descending=True)
                value, order = value[:per_level], order[:per_level]
                boxes.append(decode(offset_of[order], references[order], _ANCHOR_SPREAD, size)[:, 0])
                values.append(value)
                groups.append(torch.full_like(order, level))
            box, value, group = torch.cat(boxes), torch.cat(values), torch.cat(groups)
            real = ((box[:, 2:] - box[:, :2]) > 0).all(dim=1)
            box, value, group = box[real], value[real], group[real]
            keep = suppress(box, value, group, 0.7)[: self.config.proposals]
            proposals.append((box[keep].detach(), value[keep].detach()))
        return proposals

    def _proposal_losses(
        self, scores: Sequence[Tensor], offsets: Sequence[Tensor], sizes: Sequence[Size], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        levels = [anchors(s.shape[2:], stride, s.device) for s, stride in zip(scores, _STRIDES, strict=True)]
        references = torch.cat(levels)
        class_loss = box_loss = references.new_zeros(())
        total = 0
        for i, (size, target) in enumerate(zip(sizes, targets, strict=True)):
            score = torch.cat([_rows(level[i], 1).flatten() for level in scores])
            offset = torch.cat([_rows(level[i], 4) for level in offsets])
            inside = torch.cat([_inside(s.shape[2:], stride, size) for s, stride in zip(scores, _STRIDES, strict=True)])
            inside = inside.to(score.device)
            assigned = torch.full((len(references),), IGNORED, device=score.device)
            assigned[inside] = assign(references[inside], target["boxes"], positive=0.7, negative=0.3, least=0.3)
            positive, negative = sample(assigned, 256, 0.5)
            chosen = torch.cat([positive, negative])
            truth = (assigned[chosen] >= 0).float()
            class_loss = class_loss + F.binary_cross_entropy_with_logits(score[chosen], truth, reduction="sum")
            wanted = encode(target["boxes"][assigned[positive]], references[positive], _ANCHOR_SPREAD)
            box_loss = box_loss + (offset[positive] - wanted).abs().sum()
            total += max(len(positive), 1) + max(len(negative), 1)  # as they count
        return {"proposal_class": class_loss / total, "proposal_box": box_loss / total}

    # Second stage

    def classify(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """What the regions (R, 5) hold: logits (R, classes + 1), the background last, and offsets (R, 4 · classes)."""
        hidden = self.box_head(pool_regions(maps[:4], _STRIDES[:4], regions, _BOX_SIDE))
        return self.class_score(hidden).float(), self.box_offset(hidden).float()

    def segment(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Mask logits of the regions (R, 5) for every class: (R, classes, 28, 28)."""
        pooled = pool_regions(maps[:4], _STRIDES[:4], regions, _MASK_SIDE)
        return self.mask_predictor(self.mask_head(pooled)).float()

    def _losses(
        self, maps: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        regions, labels, wanted, inside, shapes = [], [], [], [], []
        for i, (proposed, target) in enumerate(zip(proposals, targets, strict=True)):
            truth = target["boxes"]
            found = assign(proposed, truth, positive=0.5, negative=0.5, least=0.5)
            boxes = torch.cat([truth, proposed])  # the true boxes are proposals too
            assigned = torch.cat([torch.arange(len(truth), device=found.device), found])
            positive, negative = sample(assigned, self.config.samples, 0.25)
            chosen, which = torch.cat([positive, negative]), assigned[positive]
            regions.append(F.pad(boxes[chosen], (1, 0), value=i))
            background = torch.full_like(negative, len(self.config.classes))
            labels.append(torch.cat([target["labels"][which], background]))
            wanted.append(encode(truth[which], boxes[positive], _BOX_SPREAD))
            inside.append(torch.arange(len(chosen), device=found.device) < len(positive))
            shapes.append(crop_masks(target["masks"], boxes[positive], which, 2 * _MASK_SIDE))
        region, label, is_positive = torch.cat(regions), torch.cat(labels), torch.cat(inside)
        logits, offsets = self.classify(maps, region)
        total = max(len(label), 1)
        kind = label[is_positive]
        rows = torch.arange(len(kind), device=kind.device)
        of_kind = offsets.view(len(label), len(self.config.classes), 4)[is_positive][rows, kind]
        masks = self.segment(maps, region[is_positive])
        truth = torch.cat(shapes)
        mask_loss = F.binary_cross_entropy_with_logits(masks[rows, kind], truth) if len(kind) else masks.sum() * 0
        return {
            "class": F.cross_entropy(logits, label, reduction="sum") / total,
            "box": (of_kind - torch.cat(wanted)).abs().sum() / total,
            "mask": mask_loss,
        }

    def _detect(
        self, maps: Sequence[Tensor], regions: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[Size]
    ) -> list[Detections]:
        config = self.config
        together = torch.cat([F.pad(boxes, (1, 0), value=i) for i, (boxes, _) in enumerate(regions)])
        logits, offsets = self.classify(maps, together)
        counts = [len(boxes) for boxes, _ in regions]
        found = []
        for (proposed, _), logit, offset, size in zip(
            regions, logits.split(counts), offsets.split(counts), sizes, strict=True
        ):
            scores = logit.softmax(dim=-1)[:, :-1]
            which, label = (scores > config.score_threshold).nonzero(as_tuple=True)
            box, score = decode(offset, proposed, _BOX_SPREAD, size)[which, label], scores[which, label]
            keep = suppress(box, score, label, config.overlap_threshold)[: config.max_detections]
            found.append((box[keep], score[keep], label[keep]))
        boxes = torch.cat([F.pad(box, (1, 0), value=i) for i, (box, _, _) in enumerate(found)])
        labels = torch.cat([label for _, _, label in found])
        masks = self.segment(maps, boxes)[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        split = masks.split([len(label) for _, _, label in found])
        return [Detections(*parts, mask) for parts, mask in zip(found, split, strict=True)]

    def no_weight_decay(self) -> set[str]:
        """Of the backbone; see `VMamba.no_weight_decay`."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See `VMamba.set_grad_checkpointing`."""
        self.backbone.set_grad_checkpointing(enable)


def _rows(level: Tensor, width: int) -> Tensor:
    """(A · width, H, W) → float32 (H · W · A, width), in the order of `anchors`."""
    return level.permute(1, 2, 0).reshape(-1, width).float()


def _inside(grid: Size, stride: int, size: Size) -> Tensor:
    """Which anchors of a level lie on the image or its own padding, not on what was added to fit the batch."""
    rows, columns = (-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in size)
    inside = torch.zeros((*grid, len(ASPECT_RATIOS)), dtype=torch.bool)
    inside[: -(-rows // stride), : -(-columns // stride)] = True
    return inside.flatten()
