"""Boxes of a two-stage detector: anchors, offsets, assignment, suppression; with the conventions of MMDetection 3.

A box is x1, y1, x2, y2 in pixels, pixel (i, j) being the unit square up to (i + 1, j + 1). The conventions are those
that the authors' detectors were trained with; where torchvision's differ (rounded anchors, one-sided limits of the
offsets, scales of the levels guessed from their sizes), results would too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, nms, roi_align

#: Anchors per location: height / width of each; their area is that of a square of 8 strides.
ASPECT_RATIOS = (0.5, 1.0, 2.0)
_ANCHOR_SCALE = 8
#: Sizes change by at most this factor.
_MAX_LOG_RATIO = abs(math.log(16 / 1000))
#: Above this many boxes each class is suppressed on its own.
_SPLIT = 10_000

NEGATIVE, IGNORED = -1, -2


def anchors(grid: Sequence[int], stride: int, device: torch.device) -> Tensor:
    """Anchors of one level, float32 (rows · columns · 3, 4): locations row by row, the aspect ratios innermost."""
    rows, columns = grid
    height = torch.tensor(ASPECT_RATIOS, device=device).sqrt()
    sides = torch.stack([1 / height, height], dim=1) * (stride * _ANCHOR_SCALE)
    shapes = torch.cat([-0.5 * sides, 0.5 * sides], dim=1)
    y, x = torch.meshgrid(
        torch.arange(rows, device=device) * stride, torch.arange(columns, device=device) * stride, indexing="ij"
    )
    shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (shifts + shapes).view(-1, 4)


def encode(boxes: Tensor, references: Tensor, spread: Sequence[float]) -> Tensor:
    """Offsets (N, 4) that turn `references` into `boxes`: centre in units of the size, log of the size; ÷ spread."""
    centre, size = (references[:, :2] + references[:, 2:]) / 2, references[:, 2:] - references[:, :2]
    to_centre, to_size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = torch.cat([(to_centre - centre) / size, (to_size / size).log()], dim=1)
    return offsets / offsets.new_tensor(spread)


def decode(offsets: Tensor, references: Tensor, spread: Sequence[float], size: Sequence[int]) -> Tensor:
    """The inverse of `encode`, limited to an image.

    Args:
        offsets: (N, K · 4), K sets per reference.
        references: (N, 4).
        spread: What the offsets were divided by.
        size: Height and width of the image.

    Returns:
        Boxes (N, K, 4).
    """
    offsets = offsets.view(len(references), -1, 4) * offsets.new_tensor(spread)
    centre = (references[:, None, :2] + references[:, None, 2:]) * 0.5
    reference_size = references[:, None, 2:] - references[:, None, :2]
    centre = centre + reference_size * offsets[..., :2]
    half = reference_size * offsets[..., 2:].clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], dim=-1)
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return boxes.clamp(min=0).minimum(limit)


def assign(boxes: Tensor, truth: Tensor, *, positive: float, negative: float, least: float) -> Tensor:
    """Which true box each of `boxes` is to find.

    Args:
        boxes: Anchors or proposals (N, 4).
        truth: True boxes (G, 4).
        positive: From this overlap (intersection over union) on, a box has to find the true box it overlaps most.
        negative: Below it, none.
        least: The boxes that overlap a true box most have to find it, if the overlap is at least this.

    Returns:
        int64 (N,): index into `truth`, `NEGATIVE`, or `IGNORED` between the thresholds.
    """
    if len(truth) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), NEGATIVE, device=boxes.device)
    overlap = box_iou(truth, boxes).nan_to_num_(0.0)
    best, which = overlap.max(dim=0)
    assigned = torch.full_like(which, IGNORED)
    assigned[best < negative] = NEGATIVE
    assigned = torch.where(best >= positive, which, assigned)
    most = overlap.amax(dim=1)
    for i in (most >= least).nonzero().flatten().tolist():
        assigned[overlap[i] == most[i]] = i
    return assigned


def sample(assigned: Tensor, number: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Indices of randomly chosen positives, at most that share of `number`, and of negatives that fill it up."""
    positive = (assigned >= 0).nonzero().flatten()
    negative = (assigned == NEGATIVE).nonzero().flatten()
    positive = _choose(positive, int(number * positive_share))
    return positive, _choose(negative, number - len(positive))


def _choose(indices: Tensor, number: int) -> Tensor:
    if len(indices) <= number:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:number]]


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each group: indices of the boxes kept, best first.

    Groups are kept apart by moving each to a place of its own, as mmcv does; the rounding that this brings is part of
    the result, so torchvision's choice of another way for many boxes is not used.
    """
    if len(boxes) == 0:
        return groups.new_zeros(0)
    apart = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < _SPLIT:
        return nms(apart, scores, threshold)
    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        kept.append(members[nms(apart[members], scores[members], threshold)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].argsort(descending=True)]


def pool_regions(maps: Sequence[Tensor], strides: Sequence[int], regions: Tensor, side: int) -> Tensor:
    """Features of regions, each from the level that suits its size, by aligned RoIAlign with adaptive sampling.

    Args:
        maps: Levels (B, C, H, W), finest first.
        strides: Of the levels.
        regions: (R, 5), index of the image, then the box.
        side: Height and width of the result.

    Returns:
        float32 (R, C, side, side).
    """
    size = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
    level = (size / 56 + 1e-6).log2().floor().clamp(0, len(maps) - 1).long()
    pooled = maps[0].new_zeros((len(regions), maps[0].shape[1], side, side), dtype=torch.float32)
    for i, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = (level == i).nonzero().flatten()
        values = roi_align(features.float(), regions[chosen], side, 1 / stride, sampling_ratio=0, aligned=True)
        pooled = pooled.index_put((chosen,), values)
    return pooled


def crop_masks(masks: Tensor, boxes: Tensor, which: Tensor, side: int) -> Tensor:
    """What `masks[which]` (G, H, W) look like inside `boxes` (N, 4): float32 (N, side, side) of zeros and ones."""
    regions = torch.cat([which[:, None].to(boxes), boxes], dim=1)
    cropped = roi_align(masks[:, None].float(), regions, side, 1.0, sampling_ratio=0, aligned=True)
    return (cropped[:, 0] >= 0.5).float()


def paste_masks(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Masks inside boxes, laid over the image.

    Args:
        masks: Probabilities (N, S, S).
        boxes: (N, 4) in pixels of the image.
        size: Height and width of the image.

    Returns:
        bool (N, height, width): probability at least one half.
    """
    height, width = int(size[0]), int(size[1])
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    for mask, box, out in zip(masks.float(), boxes.float(), pasted, strict=True):
        # Only the pixels around the box: elsewhere the mask is zero.
        left, top = (box[:2].floor() - 1).clamp(min=0).int().tolist()
        right, bottom = min(int(box[2].ceil()) + 1, width), min(int(box[3].ceil()) + 1, height)
        if right <= left or bottom <= top:
            continue
        x = (torch.arange(left, right, device=masks.device) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        x, y = x.masked_fill(x.isinf(), 0), y.masked_fill(y.isinf(), 0)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        out[top:bottom, left:right] = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= 0.5
    return pasted
