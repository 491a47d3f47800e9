"""An image as it is seen and as a model wants it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from vmamba.data.images import read_image

Pixels = NDArray[np.uint8]


def load_image(
    path: str | Path, model: nn.Module, size: tuple[int, int], max_pixels: int | None = None
) -> tuple[Pixels, Tensor]:
    """Read an image for a model, the whole of it: resized to `size` without cropping.

    Args:
        path: The file.
        model: Its ``pretrained_cfg`` says how to normalise, where it has one; otherwise with ImageNet's statistics.
        size: (H, W) in pixels.
        max_pixels: See `vmamba.data.images.read_image`.

    Returns:
        uint8 (H, W, 3), to look at; float32 (1, 3, H, W), to run.

    Raises:
        ImageError: If it cannot be read.
    """
    image = read_image(path, max_pixels=max_pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.array(image)
    settings = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (
        torch.tensor(settings.get(key) or default).view(3, 1, 1)
        for key, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD))
    )
    return pixels, ((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std).unsqueeze(0)
