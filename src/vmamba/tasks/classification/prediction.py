"""Image classification: from files to class probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from vmamba.data.images import read_image
from vmamba.errors import ImageError

Transform = Callable[[Image.Image], Tensor]


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
        image_size: Side of the crop in pixels; None for the model's own.

    Returns:
        PIL image (RGB) → float32 (3, S, S).
    """
    config = resolve_data_config({"img_size": image_size} if image_size else {}, pretrained_cfg=_data_settings(model))
    transform: Transform = create_transform(**config)
    return transform


def _data_settings(model: nn.Module) -> dict[str, object]:
    settings = getattr(model, "pretrained_cfg", None)
    return settings or {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}


def predict(
    model: nn.Module,
    paths: Iterable[Path],
    *,
    transform: Transform,
    topk: int = 5,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[Prediction]:
    """Classify image files in batches, in order.

    Args:
        model: Maps (B, 3, S, S) to logits (B, classes).
        paths: Image files.
        transform: See `eval_transform`.
        topk: Classes per image, at most all of them.
        batch_size: Images per forward pass.
        device: Where to run.
        on_error: Called with an image that cannot be read, which is then left out; without it the error is raised.

    Yields:
        A `Prediction` per readable image.

    Raises:
        ImageError: For an unreadable image, without `on_error`.
        ValueError: For a `topk` or `batch_size` below 1.
    """
    if topk < 1 or batch_size < 1:
        raise ValueError(f"topk and batch_size must be at least 1, got {topk} and {batch_size}")
    model = model.to(device).eval()
    images = _readable(paths, transform, on_error)
    while batch := list(islice(images, batch_size)):
        with torch.inference_mode():
            logits = model(torch.stack([pixels for _, pixels in batch]).to(device))
            probabilities, classes = logits.float().softmax(-1).topk(min(topk, logits.shape[-1]))
        for (path, _), row, p in zip(batch, classes.tolist(), probabilities.tolist(), strict=True):
            yield Prediction(path, tuple(row), tuple(p))


def _readable(
    paths: Iterable[Path], transform: Transform, on_error: Callable[[ImageError], None] | None
) -> Iterator[tuple[Path, Tensor]]:
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield path, transform(image)


def class_names(num_classes: int, labels: Path | None = None) -> Sequence[str]:
    """Names of the classes: from a file, else ImageNet-1K's where there are 1000, else their numbers.

    Args:
        num_classes: How many there are.
        labels: Text file, one name per line.

    Raises:
        ValueError: If the file cannot be read or has another number of lines.
    """
    if labels is not None:
        try:
            names = labels.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{labels}: cannot read labels: {getattr(error, 'strerror', None) or error}") from None
        if len(names) != num_classes:
            raise ValueError(f"{labels}: has {len(names)} labels, the model {num_classes} classes; one per line")
        return names
    if num_classes == 1000:
        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(num_classes)]
    return [f"class {i}" for i in range(num_classes)]
