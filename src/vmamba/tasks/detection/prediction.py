"""Detection in an image: boxes and masks in its pixels."""

from __future__ import annotations

import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as V

from vmamba.checkpoints.info import Preprocessing
from vmamba.data.dense_transforms import MAX_SIZE, MEAN, STD, rescale_size, resize_image
from vmamba.errors import OptionError
from vmamba.tasks.detection.detections import Detections
from vmamba.tasks.detection.task import pad_together

#: Preprocessing of the published results on COCO.
PUBLISHED = Preprocessing(image_size=800, max_size=MAX_SIZE, mean=MEAN, std=STD, interpolation="bilinear")

#: Short side of the smallest input, pixels.
MIN_SIZE = 32


def check_sizes(image_size: int, max_size: int) -> None:
    """Refuse sizes of the input that cannot be.

    Raises:
        OptionError: If they are too small, or the wrong way round.
    """
    if not MIN_SIZE <= image_size <= max_size:
        raise OptionError(f"image_size must be from {MIN_SIZE} to max_size, got {image_size} and {max_size}")


@torch.inference_mode()
def detect(
    model: nn.Module,
    image: Image.Image,
    preprocessing: Preprocessing | None = None,
    *,
    score_threshold: float = 0.5,
) -> Detections:
    """Detect objects in one image.

    Args:
        model: A `MaskRCNN` in evaluation mode, or an `ExportedDetector`.
        image: RGB.
        preprocessing: Of the image; by default that of the published results.
        score_threshold: Lowest score of a detection.

    Returns:
        Detections on the CPU, boxes in pixels of the image; see `Detections.image_masks`.

    Raises:
        OptionError: For impossible sizes.
    """
    settings = preprocessing or PUBLISHED
    original = (image.height, image.width)
    short = settings.image_size or min(original)
    long = settings.max_size or max(original)
    check_sizes(short, long)
    size = rescale_size(original, short, long)
    pixels = resize_image(V.pil_to_tensor(image), size).float() / 255
    pixels = V.normalize(pixels, list(settings.mean), list(settings.std))
    device = next(model.parameters(), pixels).device  # an exported detector has no parameters
    (detections,) = model(pad_together([pixels]).to(device), [size])
    scale = (size[0] / original[0], size[1] / original[1])
    return detections.to("cpu").above(score_threshold).rescale(scale)
