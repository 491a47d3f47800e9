"""The two compiled operators of mmcv that Mask R-CNN needs, by torchvision: mmcv-lite comes without any.

Test-only. `install` must run before ``mmcv.ops`` is imported; the other operators raise when they are called.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torchvision.ops
from torch import Tensor


def install() -> None:
    """Make this module ``mmcv._ext``."""
    operators = _Operators("mmcv._ext")
    operators.__spec__ = ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = operators


class _Operators(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: Any, **__: Any) -> None:
            raise NotImplementedError(f"mmcv's operator {name} is not compiled here")

        return absent

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        features: Tensor,
        regions: Tensor,
        output: Tensor,
        *_: Tensor,
        aligned_height: int,
        aligned_width: int,
        spatial_scale: float,
        sampling_ratio: int,
        pool_mode: int,
        aligned: bool,
    ) -> None:
        assert pool_mode == 1  # average
        size = (aligned_height, aligned_width)
        output.copy_(torchvision.ops.roi_align(features, regions, size, spatial_scale, sampling_ratio, aligned))

    @staticmethod
    def roi_align_backward(
        gradient: Tensor,
        regions: Tensor,
        _y: Tensor,
        _x: Tensor,
        result: Tensor,
        *,
        aligned_height: int,
        aligned_width: int,
        spatial_scale: float,
        sampling_ratio: int,
        pool_mode: int,
        aligned: bool,
    ) -> None:
        assert pool_mode == 1
        size = (aligned_height, aligned_width)
        with torch.enable_grad():  # linear in the features, so any features do
            features = torch.zeros_like(result, requires_grad=True)
            pooled = torchvision.ops.roi_align(features, regions, size, spatial_scale, sampling_ratio, aligned)
            result += torch.autograd.grad(pooled, features, gradient)[0]
