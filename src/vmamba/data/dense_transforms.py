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

#: Longest side of COCO's images after resizing.
LONGEST = 1333
_SHORT_3X = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def fit(size: Sequence[int], short: float, long: float) -> tuple[int, int]:
    """Height and width, in proportion, as large as possible with these limits on the short and the long side.

    Neither is 0, however long the image is.
    """
    scale = min(long / max(size), short / min(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def resize_image(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear without smoothing, as OpenMMLab's pipelines do it."""
    return F.resize(image, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=False)


class _Resize(v2.Transform):
    """Everything to one size: pictures bilinear, masks nearest."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"size": self.target(F.get_size(_picture(flat_inputs)))}

    def target(self, size: Sequence[int]) -> tuple[int, int]:
        raise NotImplementedError

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, size=list(params["size"]), interpolation=_BILINEAR, antialias=False)


_BILINEAR = v2.InterpolationMode.BILINEAR


class ResizeShortSide(_Resize):
    """Resize in proportion so that the short side has one of these lengths, drawn, and the long side at most that."""

    def __init__(self, short: Sequence[int], long: int) -> None:
        super().__init__()
        self.short, self.long = tuple(short), long

    def target(self, size: Sequence[int]) -> tuple[int, int]:
        return fit(size, self.short[int(torch.randint(len(self.short), ()))], self.long)


class RandomScale(_Resize):
    """Resize in proportion to fit (short, long), both times a factor drawn from a range."""

    def __init__(self, short: int, long: int, factor: tuple[float, float]) -> None:
        super().__init__()
        self.short, self.long, self.factor = short, long, factor

    def target(self, size: Sequence[int]) -> tuple[int, int]:
        factor = float(torch.empty(()).uniform_(*self.factor))
        return fit(size, int(self.short * factor), int(self.long * factor))


class _Crop(v2.Transform):
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class RandomSizedCrop(_Crop):
    """A crop whose height and width are each drawn between two lengths (or the side itself, where shorter)."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least, self.most = least, most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(_picture(flat_inputs))
        h, w = (_draw(min(side, self.least), min(side, self.most)) for side in (height, width))
        return {"top": _draw(0, height - h), "left": _draw(0, width - w), "height": h, "width": w}


class CropVaried(_Crop):
    """A square crop, drawn again up to ten times while one class covers too much of it; smaller where the image is."""

    def __init__(self, size: int, most: float = 0.75, ignored: int = 255) -> None:
        super().__init__()
        self.size, self.most, self.ignored = size, most, ignored

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(_picture(flat_inputs))
        labels = next(x for x in flat_inputs if isinstance(x, tv_tensors.Mask))
        h, w = min(self.size, height), min(self.size, width)
        for _ in range(11):
            params = {"top": _draw(0, height - h), "left": _draw(0, width - w), "height": h, "width": w}
            values, counts = F.crop(labels, **params).unique(return_counts=True)
            counts = counts[values != self.ignored]
            if len(counts) > 1 and counts.max() < self.most * counts.sum():
                break
        return params


class PadToSquare(v2.Transform):
    """Pad below and on the right, pictures with 0, labels with `ignored`. After normalisation."""

    def __init__(self, size: int, ignored: int = 255) -> None:
        super().__init__()
        self.size, self.ignored = size, ignored

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(_picture(flat_inputs))
        return {"padding": [0, 0, max(self.size - width, 0), max(self.size - height, 0)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        fill = self.ignored if isinstance(inpt, tv_tensors.Mask) else 0
        return self._call_kernel(F.pad, inpt, fill=fill, **params)


class _Brighten(v2.Transform):
    """Add up to `most` (of 255) to all channels alike."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"added": float(torch.empty(()).uniform_(-self.most, self.most))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap((inpt.float() + params["added"]).clamp(0, 255).to(torch.uint8), like=inpt)


def photometric() -> v2.Transform:
    """Brightness, contrast, saturation and hue, each with probability one half; the contrast before or after."""
    brightness, contrast, saturation, hue = (
        v2.RandomApply([transform], p=0.5)
        for transform in (
            _Brighten(32),
            v2.ColorJitter(contrast=(0.5, 1.5)),
            v2.ColorJitter(saturation=(0.5, 1.5)),
            v2.ColorJitter(hue=0.05),
        )
    )
    first = v2.Compose([brightness, contrast, saturation, hue])
    return v2.RandomChoice([first, v2.Compose([brightness, saturation, hue, contrast])])


def _normalised() -> list[v2.Transform]:
    return [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(MEAN, STD)]


def detection_training(schedule: str, short: int, long: int = LONGEST) -> v2.Transform:
    """The augmentation of COCO's schedules.

    Args:
        schedule: ``"1x"``: one scale and flips. ``"3x"``: many scales, half of the time of a crop.
        short: Short side of the one scale.
        long: Limit of the long side.
    """
    flip = v2.RandomHorizontalFlip(0.5)
    scales: v2.Transform = ResizeShortSide([short], long)
    if schedule == "3x":
        share = short / 800
        many = [round(s * share) for s in _SHORT_3X]
        crop = [
            ResizeShortSide([round(s * share) for s in (400, 500, 600)], long),
            RandomSizedCrop(round(384 * share), round(600 * share)),
            ResizeShortSide(many, long),
        ]
        scales = v2.RandomChoice([ResizeShortSide(many, long), v2.Compose(crop)])
    return v2.Compose([flip, scales, v2.SanitizeBoundingBoxes(), *_normalised()])


def detection_evaluation(short: int, long: int = LONGEST) -> v2.Transform:
    """Resize the picture alone and normalise; boxes and masks are those of the original."""
    return v2.Compose([_PictureOnly(fit, (short, long)), *_normalised()])


def segmentation_training(crop: int, short: int, long: int, factor: tuple[float, float]) -> v2.Transform:
    """The augmentation of ADE20K's 160k schedule: scale, varied crop, flip, colours, padding to the crop's size."""
    return v2.Compose(
        [
            RandomScale(short, long, factor),
            CropVaried(crop),
            v2.RandomHorizontalFlip(0.5),
            photometric(),
            *_normalised(),
            PadToSquare(crop),
        ]
    )


def segmentation_evaluation(short: int, long: int) -> v2.Transform:
    """Resize the picture alone and normalise; the labels are those of the original."""
    return v2.Compose([_PictureOnly(fit, (short, long)), *_normalised()])


class _PictureOnly(v2.Transform):
    """Resize pictures and leave all else."""

    def __init__(self, size: Any, limits: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.limits = size, limits

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap(resize_image(inpt, self.size(inpt.shape[-2:], *self.limits)), like=inpt)


def _picture(flat_inputs: list[Any]) -> Any:
    return next(x for x in flat_inputs if isinstance(x, tv_tensors.Image))


def _draw(least: int, most: int) -> int:
    """A whole number between the two, both possible."""
    return int(torch.randint(least, most + 1, ()))
