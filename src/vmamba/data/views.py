"""Several random views of one image, by torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Pair = tuple[float, float]


class Views(NamedTuple):
    """Views of an image.

    Attributes:
        kinds: One stack of views a kind, (V, 3, S, S) float32.
        image: The image as a model sees it in use, (3, S, S); empty where it is not needed.
    """

    kinds: tuple[Tensor, ...]
    image: Tensor


class RandomViews:
    """PIL image (RGB) → `Views`.

    Args:
        kinds: Number of views and the transform that draws one, for each kind.
        evaluation: The transform of the image itself, or None to leave it out.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[int, Callable[[Image.Image], Tensor]]],
        evaluation: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        self.kinds, self.evaluation = [(count, draw) for count, draw in kinds if count], evaluation

    def __call__(self, image: Image.Image) -> Views:
        views = tuple(torch.stack([draw(image) for _ in range(count)]) for count, draw in self.kinds)
        return Views(views, torch.empty(0) if self.evaluation is None else self.evaluation(image))


def random_view(
    size: int,
    *,
    scale: Pair,
    ratio: Pair,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    hflip: float = 0.0,
    color_jitter: float = 0.0,
    grayscale: float = 0.0,
    blur: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """A random crop, perhaps flipped, recoloured and blurred: PIL image (RGB) → float32 (3, S, S).

    Args:
        size: S, in pixels.
        scale: Range of the crop's area, as a fraction of the image's.
        ratio: Range of its aspect ratio.
        mean: Of each channel, images being in [0, 1].
        std: Likewise.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of brightness, contrast and saturation, in four views of five; a quarter of it of hue.
        grayscale: Probability of leaving the colours out.
        blur: Probability of a Gaussian blur.
    """
    steps: list[Any] = [v2.RandomResizedCrop(size, scale, ratio, v2.InterpolationMode(interpolation))]
    if hflip:
        steps.append(v2.RandomHorizontalFlip(hflip))
    if color_jitter:
        strength = [color_jitter] * 3
        steps.append(v2.RandomApply([v2.ColorJitter(*strength, hue=color_jitter / 4)], 0.8))
    if grayscale:
        steps.append(v2.RandomGrayscale(grayscale))
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    if blur:
        kernel = max(3, size // 10 | 1)
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], blur))
    return v2.Compose([*steps, v2.Normalize(list(mean), list(std))])
