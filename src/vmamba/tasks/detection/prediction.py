"""Detection in image files: from a path to boxes and masks in the pixels of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from vmamba.data.dense_transforms import LONGEST, MEAN, STD, fit, resize_image
from vmamba.data.images import read_image
from vmamba.errors import ImageError
from vmamba.tasks.detection.mask_rcnn import MaskRCNN
from vmamba.tasks.detection.task import pad_together


@dataclass(frozen=True)
class Found:
    """What was found in one image, best first, in its pixels.

    Attributes:
        path: The file.
        image: Its content.
        boxes: (N, 4).
        scores: (N,).
        labels: (N,), indices into the classes.
        masks: Bool (N, H, W).
    """

    path: Path
    image: Image.Image
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


def detect(
    model: MaskRCNN,
    paths: Iterable[Path],
    *,
    image_size: int = 800,
    max_size: int = LONGEST,
    least_score: float = 0.5,
    device: torch.device | str = "cpu",
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[Found]:
    """Find things in image files, one at a time, in order.

    Args:
        model: The detector.
        paths: Image files.
        image_size: Short side of the network's input.
        max_size: Limit of its long side.
        least_score: Leave out what is less certain.
        device: Where to run.
        on_error: Called with an image that cannot be read, which is then left out; without it the error is raised.

    Raises:
        ImageError: For an unreadable image, without `on_error`.
        ValueError: For impossible sizes.
    """
    if not 32 <= image_size <= max_size:
        raise ValueError(f"image_size must be from 32 to max_size, got {image_size} and {max_size}")
    model = model.to(device).eval()
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        original = (image.height, image.width)
        size = fit(original, image_size, max_size)
        pixels = resize_image(V.pil_to_tensor(image), size).float() / 255
        x = pad_together([V.normalize(pixels, list(MEAN), list(STD))]).to(device)
        with torch.inference_mode():
            (detections,) = model(x, [size])
            boxes, masks = detections.in_image(original, (size[0] / original[0], size[1] / original[1]))
        sure = (detections.scores >= least_score).cpu()
        yield Found(
            path, image, boxes.cpu()[sure], detections.scores.cpu()[sure], detections.labels.cpu()[sure],
            masks.cpu()[sure],
        )  # fmt: skip
