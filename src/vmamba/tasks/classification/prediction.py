"""Image classification: from files to class probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import Tensor, nn

from vmamba.data.decoding import Batch, DecodedBatches
from vmamba.data.sources import ImageRef
from vmamba.errors import DataError, OptionError, system_reason
from vmamba.files import require_file

Transform = Callable[[Image.Image], Tensor]

#: Longest side of an image that is looked at, in units of its shortest.
_MAX_ASPECT = 16


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first.

    Attributes:
        image: Its name: the path, or ``ARCHIVE:MEMBER``.
        classes: Class indices.
        probabilities: Their probabilities.
    """

    image: str
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def path(self) -> Path:
        """The image, where it is a file."""
        return Path(self.image)


def eval_transform(model: nn.Module, image_size: int | None = None) -> Transform:
    """The published evaluation preprocessing: resize the short side, crop the centre, normalise.

    Args:
        model: Its ``pretrained_cfg`` says how it was trained, where it has one.
        image_size: Height and width of the crop in pixels; None for the model's own.

    Returns:
        PIL image (RGB) → float32 (3, S, S).
    """
    return evaluation_transform(evaluation_config(model, image_size))


def evaluation_config(model: nn.Module, image_size: int | None = None) -> dict[str, Any]:
    """The preprocessing of `eval_transform` as `timm.data.resolve_data_config` gives it; arguments as there."""
    published = {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bicubic"}
    settings = published | (getattr(model, "pretrained_cfg", None) or {})
    return resolve_data_config({"img_size": image_size} if image_size else {}, pretrained_cfg=settings)


def evaluation_transform(config: Mapping[str, Any]) -> Transform:
    """The preprocessing that a data configuration of timm's describes, for images of any shape.

    Args:
        config: As `timm.data.resolve_data_config` gives it.

    Returns:
        PIL image (RGB) → float32 (3, S, S).
    """
    return _EvaluationTransform(create_transform(**config))


@dataclass(frozen=True)
class _EvaluationTransform:
    """A transform of the middle of an image; decoding processes are sent it."""

    transform: Transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(_middle(image))


def as_pixels(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (H, W, 3), for models that prepare it themselves."""
    return torch.from_numpy(np.array(_middle(image)))


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
    workers: int = 0,
    on_error: Callable[[str, Exception], None] | None = None,
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
        workers: Decoding processes; 0 to decode in this one.
        on_error: Called with an image that failed and the reason; the others are done. Without it the error is raised.

    Yields:
        A `Prediction` per image, as soon as its batch is done.

    Raises:
        ImageError: For an unreadable image, without `on_error`.
        OptionError: For a `topk` or `batch_size` below 1.
    """
    images = (ImageRef(str(path), path.name, str(path)) for path in paths)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "max_pixels": max_pixels}
    batches = DecodedBatches(images, transform, torch.stack, **options)
    return classify(model, batches, topk=topk, device=device, on_error=on_error)


def classify(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    topk: int = 5,
    device: torch.device | str = "cpu",
    on_error: Callable[[str, Exception], None] | None = None,
) -> Iterator[Prediction]:
    """Classify decoded images (B, 3, S, S); see `predict`."""
    if topk < 1:
        raise OptionError(f"topk must be at least 1, got {topk}")
    for images, logits in outputs(model, batches, device=device, on_error=on_error):
        probabilities, classes = logits.float().softmax(-1).topk(min(topk, logits.shape[-1]))
        for image, row, p in zip(images, classes.tolist(), probabilities.tolist(), strict=True):
            yield Prediction(image, tuple(row), tuple(p))


@torch.inference_mode()
def outputs(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    compute: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
    on_error: Callable[[str, Exception], None] | None = None,
) -> Iterator[tuple[list[str], Tensor]]:
    """Names of the images of each batch, with the model's outputs (B, …).

    Args:
        model: See `predict`.
        batches: Decoded images.
        compute: Method of the model; by default its call.
        device: See `predict`.
        on_error: See `predict`.

    Raises:
        ImageError: For an unreadable image, without `on_error`.
    """
    model = model.to(device).eval()
    compute = compute or model
    for batch in batches:
        for image, error in batch.failures:
            if on_error is None:
                raise error
            on_error(image.name, error)
        if batch.images:
            yield [image.name for image in batch.images], compute(batch.values.to(device, non_blocking=True))


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
