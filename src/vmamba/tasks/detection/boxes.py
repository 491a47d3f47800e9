"""Boxes of a two-stage detector: anchors, offsets, assignment, non-maximum suppression, as in MMDetection 3.

A box is x1, y1, x2, y2 in pixels, pixel (i, j) being the unit square up to (i + 1, j + 1). The conventions are those
that the authors' detectors were trained with. torchvision rounds its anchors, limits the offsets at one end alone, and
guesses the strides of the levels from their sizes; its results would differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

#: Anchors per location: height / width of each; their area is that of a square of 8 strides.
ASPECT_RATIOS = (0.5, 1.0, 2.0)
_ANCHOR_SCALE = 8
#: Sizes change by at most this factor.
_MAX_LOG_RATIO = abs(math.log(16 / 1000))
#: From this many boxes on, non-maximum suppression runs group by group.
_SPLIT_THR = 10_000

#: Assignment of a box that shall detect nothing, and of one that is not learnt from.
NEGATIVE, IGNORED = -1, -2


def anchors(grid: Sequence[int], stride: int, device: torch.device) -> Tensor:
    """Anchors of one level, float32 (rows · columns · 3, 4): locations row by row, the aspect ratios innermost."""
    rows, columns = grid
    height = torch.tensor(ASPECT_RATIOS, device=device).sqrt()
    sizes = torch.stack([1 / height, height], dim=1) * (stride * _ANCHOR_SCALE)
    shapes = torch.cat([-0.5 * sizes, 0.5 * sizes], dim=1)
    y, x = torch.meshgrid(
        torch.arange(rows, device=device) * stride, torch.arange(columns, device=device) * stride, indexing="ij"
    )
    shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (shifts + shapes).view(-1, 4)


def encode(boxes: Tensor, references: Tensor, stds: Sequence[float]) -> Tensor:
    """Offsets (N, 4) that turn `references` into `boxes`: centre in units of the size, log of the size; ÷ stds."""
    centre, size = (references[:, :2] + references[:, 2:]) / 2, references[:, 2:] - references[:, :2]
    to_centre, to_size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = torch.cat([(to_centre - centre) / size, (to_size / size).log()], dim=1)
    return offsets / offsets.new_tensor(stds)


def decode(offsets: Tensor, references: Tensor, stds: Sequence[float], size: Sequence[int]) -> Tensor:
    """The inverse of `encode`, limited to an image.

    Args:
        offsets: (N, K · 4), K sets per reference.
        references: (N, 4).
        stds: Divisors of the offsets.
        size: Height and width of the image.

    Returns:
        Boxes (N, K, 4).
    """
    offsets = offsets.view(references.shape[0], -1, 4) * offsets.new_tensor(stds)
    centre = (references[:, None, :2] + references[:, None, 2:]) * 0.5
    reference_size = references[:, None, 2:] - references[:, None, :2]
    centre = centre + reference_size * offsets[..., :2]
    half = reference_size * offsets[..., 2:].clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], dim=-1)
    x, y = boxes[..., 0::2].clamp(0, size[1]), boxes[..., 1::2].clamp(0, size[0])
    return torch.stack([x, y], dim=-1).flatten(-2)


def assign(boxes: Tensor, truth: Tensor, *, pos_iou_thr: float, neg_iou_thr: float, min_pos_iou: float) -> Tensor:
    """The true box that each box shall detect, by intersection over union (IoU).

    Args:
        boxes: Anchors or proposals (N, 4).
        truth: True boxes (G, 4).
        pos_iou_thr: Lowest IoU of a box with the true box that it is assigned to.
        neg_iou_thr: Boxes whose largest IoU is below it are negative.
        min_pos_iou: The boxes with the largest IoU of a true box are assigned to it from this IoU on.

    Returns:
        int64 (N,): index into `truth`, `NEGATIVE`, or `IGNORED` between the thresholds.
    """
    if len(truth) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), NEGATIVE, device=boxes.device)
    iou = box_iou(truth, boxes).nan_to_num_(0.0)
    largest, index = iou.max(dim=0)
    assigned = torch.full_like(index, IGNORED)
    assigned[largest < neg_iou_thr] = NEGATIVE
    assigned = torch.where(largest >= pos_iou_thr, index, assigned)
    of_truth = iou.amax(dim=1)
    for i in (of_truth >= min_pos_iou).nonzero().flatten().tolist():
        assigned[iou[i] == of_truth[i]] = i
    return assigned


def sample(assigned: Tensor, num: int, pos_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of randomly drawn positives, at most that fraction of `num`, and of negatives up to `num`."""
    positive = (assigned >= 0).nonzero().flatten()
    negative = (assigned == NEGATIVE).nonzero().flatten()
    positive = _draw(positive, int(num * pos_fraction))
    return positive, _draw(negative, num - len(positive))


def _draw(indices: Tensor, num: int) -> Tensor:
    if len(indices) <= num:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:num]]


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group: indices of the boxes kept, best first.

    Groups are kept apart by moving each to a place of its own, as mmcv does; the rounding that this brings is part of
    the result, so torchvision's choice of another way for many boxes is not used.
    """
    largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()  # of no box, too
    apart = boxes + (groups.to(boxes) * (largest + 1))[:, None]
    if torch.compiler.is_exporting() or len(boxes) < _SPLIT_THR:
        return nms(apart, scores, iou_threshold)
    kept = []
    for group in groups.unique():
        members = (groups == group).nonzero().flatten()
        kept.append(members[nms(apart[members], scores[members], iou_threshold)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].argsort(descending=True)]
