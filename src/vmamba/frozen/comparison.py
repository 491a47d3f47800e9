"""`compare`: how far a frozen model is from its original on images of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from vmamba.data.dense_transforms import MEAN, STD, rescale_size, resize_image
from vmamba.data.images import find_images, read_image
from vmamba.errors import OptionError

#: Images of a folder that are looked at.
MAX_IMAGES = 256
#: Short side and limit of the long one, where a dense model does not say its own.
_SIZES = {"segmentation": (512, 2048), "detection": (800, 1333)}

Images = Tensor | Iterable[Tensor] | str | Path


@dataclass(frozen=True)
class Comparison:
    """The error of a frozen model against its original.

    Attributes:
        images: Images looked at.
        relative_error: Norm of all differences over the norm of all that was expected.
        worst: The same of the worst image.
        agreement: Fraction of images, or of pixels, whose most probable class is the same; None without classes.
        of: What was compared: ``"logits"``, or the ``"maps"`` of a backbone or detector.
        counted: ``"top-1"`` or ``"pixels"``.
    """

    images: int
    relative_error: float
    worst: float
    agreement: float | None
    of: str = "maps"
    counted: str = "top-1"

    def __str__(self) -> str:
        text = f"on {self.images} images: relative error of the {self.of} {self.relative_error:.1e}, at worst "
        text += f"{self.worst:.1e}"
        return text if self.agreement is None else f"{text}; {self.agreement:.2%} of {self.counted} classes the same"


@torch.inference_mode()
def compare(model: nn.Module, frozen: nn.Module, images: Images) -> Comparison:
    """Run both on images.

    Args:
        model: The original, in evaluation mode.
        frozen: Its frozen form.
        images: Inputs (N, 3, H, W), or batches of them, or a folder of images, of which up to `MAX_IMAGES` are taken.

    Raises:
        ImageError: For a folder without images, or one that cannot be read.
        OptionError: If there are no images.
    """
    error, norm, worst, count, same, classes = 0.0, 0.0, 0.0, 0, 0, 0
    counted = "pixels" if getattr(model, "task", "") == "segmentation" else "top-1"
    of = "maps"
    for batch in batches(model, images):
        expected, got = outputs(model, batch), outputs(frozen, batch)
        differences = [g.double() - e.double() for g, e in zip(got, expected, strict=True)]
        errors, norms = _squares(differences), _squares(expected)
        error, norm, count = error + float(errors.sum()), norm + float(norms.sum()), count + len(batch)
        worst = max(worst, float((errors / norms.clamp_min(1e-30)).max()))
        if len(expected) == 1 and (expected[0].ndim == 2 or counted == "pixels"):
            agreeing = expected[0].argmax(1) == got[0].argmax(1)
            same, classes, of = same + int(agreeing.sum()), classes + agreeing.numel(), "logits"
    if not count:
        raise OptionError("freeze: there are no images to compare the frozen model with its original on")
    agreement = same / classes if classes else None
    return Comparison(count, sqrt(error / max(norm, 1e-30)), sqrt(worst), agreement, of, counted)


def batches(model: nn.Module, images: Images) -> Iterator[Tensor]:
    """Inputs of a model."""
    if isinstance(images, Tensor):
        yield from images.split(16)
    elif isinstance(images, (str, Path)):
        yield from _read(model, images)
    else:
        yield from images


def outputs(model: Any, batch: Tensor) -> list[Tensor]:
    """Results of a model for a batch; of a detector, whose last steps are choices, the maps."""
    result = model.features(batch) if getattr(model, "task", "") == "detection" else model(batch)
    return [result] if isinstance(result, Tensor) else list(result)


def _squares(maps: list[Tensor]) -> Tensor:
    """Sum of squares of every image, over its maps."""
    return torch.stack([x.double().flatten(1).square().sum(1) for x in maps]).sum(0)


def _read(model: Any, folder: str | Path) -> Iterator[Tensor]:
    """Images as the model takes them, one at a time: dense models take them at their own shape."""
    task, info = getattr(model, "task", ""), getattr(model, "info", None)
    published = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
    settings = published | (getattr(model, "pretrained_cfg", None) or {})
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=settings))
    preprocessing = getattr(info, "preprocessing", None)
    for path in find_images([folder])[:MAX_IMAGES]:
        image = read_image(path)
        if task not in _SIZES:
            yield transform(image)[None]
            continue
        short, long = _SIZES[task]
        if preprocessing is not None:
            short, long = preprocessing.image_size or short, preprocessing.max_size or long
        size = rescale_size((image.height, image.width), short, max(short, long))
        pixels = resize_image(V.pil_to_tensor(image), size).float() / 255
        mean, std = (MEAN, STD) if preprocessing is None else (preprocessing.mean, preprocessing.std)
        yield V.normalize(pixels, list(mean), list(std))[None]
