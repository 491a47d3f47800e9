"""Features and masks of regions of an image, with the conventions of `vmamba.tasks.detection.boxes`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def multiscale_roi_align(maps: Sequence[Tensor], strides: Sequence[int], regions: Tensor, size: int) -> Tensor:
    """Features of regions, each from the level that suits its size, by aligned RoIAlign with adaptive sampling.

    Args:
        maps: Levels (B, C, H, W), finest first.
        strides: Of the levels.
        regions: (R, 5), index of the image, then the box.
        size: Height and width of the result.

    Returns:
        float32 (R, C, size, size).
    """
    scale = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
    level = (scale / 56 + 1e-6).log2().floor().clamp(0, len(maps) - 1).long()
    pooled = maps[0].new_zeros((regions.shape[0], maps[0].shape[1], size, size), dtype=torch.float32)
    for i, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        chosen = (level == i).nonzero().flatten()
        values = roi_align(features.float(), regions[chosen], size, 1 / stride, sampling_ratio=0, aligned=True)
        pooled = pooled.index_put((chosen,), values)
    return pooled


def crop_masks(masks: Tensor, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """The masks `masks[index]` (G, H, W) inside `boxes` (N, 4): float32 (N, size, size) of zeros and ones."""
    regions = torch.cat([index[:, None].to(boxes), boxes], dim=1)
    cropped = roi_align(masks[:, None].float(), regions, size, 1.0, sampling_ratio=0, aligned=True)
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
