"""Augmentation for detection and segmentation: torchvision's transforms, and those of the published recipes it lacks.

They work on dictionaries with tv_tensors, and draw from PyTorch's generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Limit of the longer side of COCO's images after resizing.
MAX_SIZE = 1333
_MIN_SIZES_3X = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def rescale_size(size: Sequence[int], min_size: float, max_size: float) -> tuple[int, int]:
    """Height and width, in proportion, as large as possible within limits on the shorter and the longer side.

    Neither is 0, however long the image is.
    """
    scale = min(max_size / max(size), min_size / min(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def resize_image(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear without smoothing, as OpenMMLab's pipelines do it."""
    return F.resize(image, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=False)


class _Resize(v2.Transform):
    """Everything to one size: images bilinear, masks nearest."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"size": self.target(F.get_size(_image(flat_inputs)))}

    def target(self, size: Sequence[int]) -> tuple[int, int]:
        raise NotImplementedError

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=list(params["size"]), interpolation=_BILINEAR, antialias=False)


_BILINEAR = v2.InterpolationMode.BILINEAR


class RandomShortestSize(_Resize):
    """Resize in proportion so that the shorter side has one of some lengths, drawn, and the longer at most `max_size`.

    Other than torchvision's, it rounds sizes to the nearest pixel, as OpenMMLab does.
    """

    def __init__(self, min_size: Sequence[int], max_size: int) -> None:
        super().__init__()
        self.min_size, self.max_size = tuple(min_size), max_size

    def target(self, size: Sequence[int]) -> tuple[int, int]:
        return rescale_size(size, self.min_size[int(torch.randint(len(self.min_size), ()))], self.max_size)


class RandomResize(_Resize):
    """Resize in proportion within (min_size, max_size), both times a ratio drawn from a range."""

    def __init__(self, min_size: int, max_size: int, ratio_range: tuple[float, float]) -> None:
        super().__init__()
        self.min_size, self.max_size, self.ratio_range = min_size, max_size, ratio_range

    def target(self, size: Sequence[int]) -> tuple[int, int]:
        ratio = float(torch.empty(()).uniform_(*self.ratio_range))
        return rescale_size(size, int(self.min_size * ratio), int(self.max_size * ratio))


class _Crop(v2.Transform):
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class RandomSizedCrop(_Crop):
    """A crop whose height and width are each drawn between two lengths (or the image's own, where smaller)."""

    def __init__(self, min_size: int, max_size: int) -> None:
        super().__init__()
        self.min_size, self.max_size = min_size, max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(_image(flat_inputs))
        h, w = (_randint(min(length, self.min_size), min(length, self.max_size)) for length in (height, width))
        return {"top": _randint(0, height - h), "left": _randint(0, width - w), "height": h, "width": w}


class RandomCrop(_Crop):
    """A square crop, drawn again up to ten times while one class covers too much of it; smaller where the image is.

    MMSegmentation's, with its `cat_max_ratio`.
    """

    def __init__(self, size: int, cat_max_ratio: float = 0.75, ignore_index: int = 255) -> None:
        super().__init__()
        self.size, self.cat_max_ratio, self.ignore_index = size, cat_max_ratio, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(_image(flat_inputs))
        labels = next(x for x in flat_inputs if isinstance(x, tv_tensors.Mask))
        h, w = min(self.size, height), min(self.size, width)
        for _ in range(11):
            params = {"top": _randint(0, height - h), "left": _randint(0, width - w), "height": h, "width": w}
            values, counts = F.crop(labels, **params).unique(return_counts=True)
            counts = counts[values != self.ignore_index]
            if len(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum():
                break
        return params


class PadToSquare(v2.Transform):
    """Pad below and on the right, images with 0, labels with `ignore_index`. After normalisation."""

    def __init__(self, size: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.size, self.ignore_index = size, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(_image(flat_inputs))
        return {"padding": [0, 0, max(self.size - width, 0), max(self.size - height, 0)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill = self.ignore_index if isinstance(inpt, tv_tensors.Mask) else 0
        return self._call_kernel(F.pad, inpt, fill=fill, **params)


class _RandomBrightness(v2.Transform):
    """Add up to `delta` (of 255) to all channels alike."""

    def __init__(self, delta: int) -> None:
        super().__init__()
        self.delta = delta

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"added": float(torch.empty(()).uniform_(-self.delta, self.delta))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap((inpt.float() + params["added"]).clamp(0, 255).to(torch.uint8), like=inpt)


def photometric_distortion() -> v2.Transform:
    """Brightness, contrast, saturation and hue, each with probability one half; the contrast before or after."""
    brightness, contrast, saturation, hue = (
        v2.RandomApply([transform], p=0.5)
        for transform in (
            _RandomBrightness(32),
            v2.ColorJitter(contrast=(0.5, 1.5)),
            v2.ColorJitter(saturation=(0.5, 1.5)),
            v2.ColorJitter(hue=0.05),
        )
    )
    first = v2.Compose([brightness, contrast, saturation, hue])
    return v2.RandomChoice([first, v2.Compose([brightness, saturation, hue, contrast])])


def _normalize() -> list[v2.Transform]:
    return [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(MEAN, STD)]


def detection_training(schedule: str, min_size: int, max_size: int = MAX_SIZE) -> v2.Transform:
    """The augmentation of COCO's schedules.

    Args:
        schedule: ``"1x"``: one scale and flips. ``"3x"``: many scales, half of the time of a crop.
        min_size: Shorter side of the one scale, in pixels.
        max_size: Limit of the longer side.
    """
    flip = v2.RandomHorizontalFlip(0.5)
    scales: v2.Transform = RandomShortestSize([min_size], max_size)
    if schedule == "3x":
        ratio = min_size / 800
        many = [round(size * ratio) for size in _MIN_SIZES_3X]
        crop = [
            RandomShortestSize([round(size * ratio) for size in (400, 500, 600)], max_size),
            RandomSizedCrop(round(384 * ratio), round(600 * ratio)),
            RandomShortestSize(many, max_size),
        ]
        scales = v2.RandomChoice([RandomShortestSize(many, max_size), v2.Compose(crop)])
    return v2.Compose([flip, scales, v2.SanitizeBoundingBoxes(), *_normalize()])


def detection_evaluation(min_size: int, max_size: int = MAX_SIZE) -> v2.Transform:
    """Resize the image alone and normalise; boxes and masks are those of the original."""
    return v2.Compose([_ResizeImage(min_size, max_size), *_normalize()])


def segmentation_training(
    crop_size: int, min_size: int, max_size: int, ratio_range: tuple[float, float]
) -> v2.Transform:
    """The augmentation of ADE20K's 160k schedule: scale, varied crop, flip, colours, padding to the crop's size."""
    return v2.Compose(
        [
            RandomResize(min_size, max_size, ratio_range),
            RandomCrop(crop_size),
            v2.RandomHorizontalFlip(0.5),
            photometric_distortion(),
            *_normalize(),
            PadToSquare(crop_size),
        ]
    )


class _ResizeImage(v2.Transform):
    """Resize images and leave all else."""

    def __init__(self, min_size: int, max_size: int) -> None:
        super().__init__()
        self.min_size, self.max_size = min_size, max_size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap(
            resize_image(inpt, rescale_size(inpt.shape[-2:], self.min_size, self.max_size)), like=inpt
        )


def _image(flat_inputs: list[Any]) -> Any:
    return next(x for x in flat_inputs if isinstance(x, tv_tensors.Image))


def _randint(low: int, high: int) -> int:
    """A whole number between the two, both possible."""
    return int(torch.randint(low, high + 1, ()))
