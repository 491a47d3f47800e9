"""Several random views of one image, by torchvision, and points that all of them show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

Pair = tuple[float, float]


class View(NamedTuple):
    """One view of an image.

    Attributes:
        pixels: (3, S, S) float32.
        box: Its left, top, right and bottom edge as fractions of the image's width and height, (4,) float32. The left
            edge of a view that is flipped is right of the right one.
    """

    pixels: Tensor
    box: Tensor


class Views(NamedTuple):
    """Views of an image.

    Attributes:
        kinds: One stack of views a kind, (V, 3, S, S) float32.
        boxes: Where they lie, (V, 4) a kind; see `View`.
        image: The image as a model sees it in use, (3, S, S); empty where it is not needed.
    """

    kinds: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    image: Tensor


class RandomViews:
    """PIL image (RGB) → `Views`.

    Args:
        kinds: Number of views and what draws one, for each kind.
        evaluation: The transform of the image itself, or None to leave it out.
        overlapping: Draw views that have at least a pixel of the image in common.
    """

    def __init__(
        self,
        kinds: Sequence[tuple[int, RandomView]],
        evaluation: Callable[[Image.Image], Tensor] | None = None,
        *,
        overlapping: bool = False,
    ) -> None:
        self.kinds, self.evaluation = [(count, draw) for count, draw in kinds if count], evaluation
        self.overlapping = overlapping

    def __call__(self, image: Image.Image) -> Views:
        common = [int(torch.randint(length, ())) for length in image.size] if self.overlapping else None
        kinds = [[draw(image, common) for _ in range(count)] for count, draw in self.kinds]
        return Views(
            tuple(torch.stack([view.pixels for view in views]) for views in kinds),
            tuple(torch.stack([view.box for view in views]) for views in kinds),
            torch.empty(0) if self.evaluation is None else self.evaluation(image),
        )


class RandomView:
    """A random crop, perhaps flipped, recoloured and blurred: PIL image (RGB) → `View`.

    Args:
        size: S, in pixels.
        scale: Range of the crop's area, as a fraction of the image's.
        ratio: Range of its aspect ratio.
        mean: Of each channel, images being in [0, 1].
        std: Likewise.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of brightness, contrast and saturation, in four views of five.
        hue: Strength of a change of hue there, up to 0.5; None for a quarter of `color_jitter`.
        grayscale: Probability of leaving the colours out.
        invert: Probability of a negative.
        blur: Probability of a Gaussian blur.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: Pair,
        ratio: Pair,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bicubic",
        hflip: float = 0.0,
        color_jitter: float = 0.0,
        hue: float | None = None,
        grayscale: float = 0.0,
        invert: float = 0.0,
        blur: float = 0.0,
    ) -> None:
        self.size, self.scale, self.ratio, self.hflip = size, list(scale), list(ratio), hflip
        self.interpolation = v2.InterpolationMode(interpolation)
        steps: list[Any] = []
        if color_jitter or hue:
            jitter = v2.ColorJitter(*[color_jitter] * 3, hue=color_jitter / 4 if hue is None else hue)
            steps.append(v2.RandomApply([jitter], 0.8))
        if grayscale:
            steps.append(v2.RandomGrayscale(grayscale))
        if invert:
            steps.append(v2.RandomInvert(invert))
        steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        if blur:
            kernel = max(3, size // 10 | 1)
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], blur))
        self._recolour = v2.Compose([*steps, v2.Normalize(list(mean), list(std))])

    def __call__(self, image: Image.Image, shown: Sequence[int] | None = None) -> View:
        """Draw a view, which shows the pixel ``(x, y)`` if `shown` names one."""
        top, left, height, width = RandomResizedCrop.get_params(image, self.scale, self.ratio)
        if shown is not None:  # as little as need be from where it was drawn
            left, top = min(max(left, shown[0] + 1 - width), shown[0]), min(max(top, shown[1] + 1 - height), shown[1])
        view = F.resized_crop(image, top, left, height, width, [self.size] * 2, self.interpolation)
        columns = [left / image.width, (left + width) / image.width]
        if self.hflip and torch.rand(()) < self.hflip:
            view = F.horizontal_flip(view)
            columns.reverse()
        box = [columns[0], top / image.height, columns[1], (top + height) / image.height]
        return View(self._recolour(view), torch.tensor(box))


def common_points(boxes: Sequence[Tensor], count: int) -> list[Tensor]:
    """Random points of every image that all its views show, drawn by the CPU's generator.

    Args:
        boxes: Of the views of each kind, (V, N, 4) float32 on the CPU; see `View`. They overlap.
        count: Points an image, P.

    Returns:
        For each kind, where they lie in each view, (V, N, P, 2): x and y from -1 to 1 as ``grid_sample`` has them.
    """
    one, other = torch.cat(list(boxes)).split(2, dim=2)
    first, last = torch.minimum(one, other).amax(0), torch.maximum(one, other).amin(0)
    points = first[:, None] + (last - first)[:, None] * torch.rand(first.shape[0], count, 2)
    edges = [box[:, :, None].split(2, dim=3) for box in boxes]
    return [2 * (points - begin) / (end - begin) - 1 for begin, end in edges]
