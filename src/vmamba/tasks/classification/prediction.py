"""Image classification: from files to class probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from vmamba.data.images import read_image
from vmamba.errors import DataError, OptionError, system_reason
from vmamba.files import require_file

Transform = Callable[[Image.Image], Tensor]

#: Longest side of an image that is looked at, in units of its shortest.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first.

    Attributes:
        path: The image.
        classes: Class indices.
        probabilities: Their probabilities.
    """

    path: Path
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


def eval_transform(model: nn.Module, image_size: int | None = None) -> Transform:
    """The published evaluation preprocessing: resize the short side, crop the centre, normalise.

    Args:
        model: Its ``pretrained_cfg`` says how it was trained, where it has one.
        image_size: Height and width of the crop in pixels; None for the model's own.

    Returns:
        PIL image (RGB) → float32 (3, S, S).
    """
    published = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
    settings = published | (getattr(model, "pretrained_cfg", None) or {})
    return evaluation_transform(
        resolve_data_config({"img_size": image_size} if image_size else {}, pretrained_cfg=settings)
    )


def evaluation_transform(config: Mapping[str, Any]) -> Transform:
    """The preprocessing that a data configuration of timm's describes, for images of any shape.

    Args:
        config: As `timm.data.resolve_data_config` gives it.

    Returns:
        PIL image (RGB) → float32 (3, S, S).
    """
    transform: Transform = create_transform(**config)
    return lambda image: transform(_middle(image))


def _middle(image: Image.Image) -> Image.Image:
    """The middle of an image of extreme shape, of which the centre crop leaves less still.

    Resized as a whole, a line of 100 000 pixels would take gigabytes.
    """
    width, height = (min(length, _MAX_ASPECT * min(image.size)) for length in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return Image.fromarray(np.asarray(image)[top : top + height, left : left + width])


def predict(
    model: nn.Module,
    paths: Iterable[Path],
    *,
    transform: Transform,
    topk: int = 5,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    max_pixels: int | None = None,
    on_error: Callable[[Path, Exception], None] | None = None,
) -> Iterator[Prediction]:
    """Classify image files in batches, in order.

    Args:
        model: Maps (B, 3, S, S) to logits (B, classes).
        paths: Image files.
        transform: See `eval_transform`.
        topk: Classes per image, at most all of them.
        batch_size: Images per forward pass.
        device: Of the model.
        max_pixels: See `vmamba.data.images.read_image`.
        on_error: Called with an image that failed and the reason; the others are done. Without it the error is raised.

    Yields:
        A `Prediction` per image, as soon as its batch is done.

    Raises:
        ImageError: For an unreadable image, without `on_error`.
        OptionError: For a `topk` or `batch_size` below 1.
    """
    if topk < 1 or batch_size < 1:
        raise OptionError(f"topk and batch_size must be at least 1, got {topk} and {batch_size}")
    model = model.to(device).eval()
    images = _prepared(paths, lambda path: transform(read_image(path, max_pixels=max_pixels)), on_error)
    while batch := list(islice(images, batch_size)):
        with torch.inference_mode():
            logits = model(torch.stack([pixels for _, pixels in batch]).to(device))
            probabilities, classes = logits.float().softmax(-1).topk(min(topk, logits.shape[-1]))
        for (path, _), row, p in zip(batch, classes.tolist(), probabilities.tolist(), strict=True):
            yield Prediction(path, tuple(row), tuple(p))


def _prepared(
    paths: Iterable[Path],
    read: Callable[[Path], Tensor],
    on_error: Callable[[Path, Exception], None] | None,
) -> Iterator[tuple[Path, Tensor]]:
    for path in paths:
        try:
            pixels = read(path)
        except Exception as error:
            if on_error is None:
                raise
            on_error(path, error)
        else:
            yield path, pixels


def class_names(num_classes: int, labels: Path | None = None, known: Sequence[str] = ()) -> Sequence[str]:
    """Names of the classes: from a file, else the known ones, else ImageNet-1K's where there are 1000, else numbers.

    Args:
        num_classes: Number of classes.
        labels: Text file, one name per line.
        known: Names in the checkpoint, perhaps none.

    Raises:
        DataError: If the file cannot be read or has another number of lines.
    """
    if labels is not None:
        try:
            require_file(labels)
            names = labels.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = system_reason(error) if isinstance(error, OSError) else "it is not UTF-8 text; save it as UTF-8"
            raise DataError(f"{labels}: cannot read labels: {reason}") from None
        if len(names) != num_classes:
            raise DataError(f"{labels}: has {len(names)} labels, the model {num_classes} classes; one per line")
        return names
    if len(known) == num_classes:
        return known
    if num_classes == 1000:
        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(num_classes)]
    return [f"class {i}" for i in range(num_classes)]
