"""timm's training transform, with what it needs on current Pillow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from torch import Tensor


def training_transform(image_size: int, **options: Any) -> Callable[[Image.Image], Tensor]:
    """``timm.data.create_transform`` for training: PIL image (RGB) → float32 (3, S, S).

    Args:
        image_size: S, in pixels.
        **options: As timm takes them.
    """
    transform = create_transform(image_size, is_training=True, **options)
    for step in transform.transforms:
        for op in _operations(step):
            if op.aug_fn is posterize:
                op.aug_fn = _posterize
    return transform


def _operations(step: Any) -> list[AugmentOp]:
    policies = [getattr(step, "ops", []), *getattr(step, "policy", [])]
    return [op for policy in policies for op in policy if isinstance(op, AugmentOp)]


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm asks for 0 bits at the strongest level; Pillow gave a black image then, from 13 on it refuses."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = posterize(image, bits, **options)
    return posterized
