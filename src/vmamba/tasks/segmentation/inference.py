"""Semantic segmentation of images of any size: whole, in windows, at several scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from vmamba.checkpoints.info import Preprocessing
from vmamba.data.dense_transforms import MEAN, STD, rescale_size, resize_image
from vmamba.errors import OptionError
from vmamba.tasks.segmentation.heads import resize

#: Scales of the published multi-scale results.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
#: Rows of the result that are computed at a time, so that the logits of a large image are never there as a whole.
_ROWS = 64


@dataclass(frozen=True)
class Inference:
    """Settings of segmentation. The defaults are those of the published single-scale results on ADE20K.

    Attributes:
        image_size: Short side of the input in pixels; None for the image's own size.
        max_size: Limit of the long side.
        window: Height and width of the windows that slide over the input; None to take it as a whole.
        stride: From window to window.
        scales: Sizes of the input as multiples of `image_size`, or of the image where that is None, as in the
            published multi-scale results; probabilities are averaged.
        flip: Average with the mirrored input.
        mean: Of each channel, images being in [0, 1].
        std: Likewise.
    """

    image_size: int | None = 512
    max_size: int = 2048
    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> Inference:
        """Single-scale inference on the whole image, with the preprocessing of a checkpoint."""
        settings = preprocessing
        size = settings.max_size or cls.max_size
        return cls(settings.image_size, max_size=size, mean=settings.mean, std=settings.std)

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 32:
            raise OptionError(f"the window must have at least 32 pixels, got {self.window}")
        if self.stride is not None and self.window is None:
            raise OptionError(f"a stride ({self.stride}) is from window to window; give the window, too")
        if self.stride is not None and not 1 <= self.stride <= (self.window or 0):
            raise OptionError(f"the stride must be from 1 to the window, got {self.stride} and {self.window}")
        if not self.scales or min(self.scales) <= 0:
            raise OptionError(f"scales must be above 0, got {self.scales}")
        if self.image_size is not None and self.image_size < 32:
            raise OptionError(f"image_size must be at least 32, got {self.image_size}")

    def inputs(self, image: Tensor) -> Iterator[Tensor]:
        """An image, uint8 (3, H, W), as normalised inputs (1, 3, h, w) of every scale."""
        for scale in self.scales:
            size = tuple(image.shape[1:])
            if self.image_size is not None:
                size = rescale_size(size, int(self.image_size * scale), int(self.max_size * scale))
            elif scale != 1:
                lengths = [int(length * scale + 0.5) for length in size]
                size = rescale_size(size, min(lengths), max(lengths))
            resized = image if size == tuple(image.shape[1:]) else resize_image(image, size)
            yield V.normalize(resized.float() / 255, list(self.mean), list(self.std))[None]

    def windows(self, size: Sequence[int]) -> int:
        """Runs of the network for an image of that height and width."""
        return sum(
            len(_starts(x, self.window, self.stride)) * len(_starts(y, self.window, self.stride)) * (1 + self.flip)
            for y, x in (i.shape[2:] for i in self.inputs(torch.empty(3, *size, device="meta", dtype=torch.uint8)))
        )


def as_tensor(image: Image.Image) -> Tensor:
    """RGB → uint8 (3, H, W)."""
    return V.pil_to_tensor(image)


@torch.inference_mode()
def segment(
    model: nn.Module,
    image: Tensor,
    inference: Inference = Inference(),
    *,
    on_window: Callable[[], None] | None = None,
) -> Tensor:
    """The class of every pixel.

    What is computed is MMSegmentation's: logits are resized to the input, then to the image; windows that overlap are
    averaged as logits, scales and mirror images as probabilities. Logits of the whole image are never held: memory
    beyond the input and the result is that of the network on its input or window, plus a band of the image.

    Args:
        model: A `UperNet` or anything else that maps (1, 3, h, w) to logits (1, classes, h, w).
        image: uint8 (3, H, W), on the device of the model.
        inference: Settings.
        on_window: Called after each run of the network.

    Returns:
        uint8 (H, W), on the CPU.
    """
    size = image.shape[1:]
    single = len(inference.scales) == 1 and not inference.flip
    total: Tensor | None = None
    labels: list[Tensor] = []
    for x in inference.inputs(image):
        for mirrored in (False, True) if inference.flip else (False,):
            bands = _bands(model, x.flip(3) if mirrored else x, inference, on_window)
            if single and x.shape[2:] == size:  # the usual case of large images
                labels += [_best(band) for band in bands]
                continue
            logits = torch.cat(list(bands), dim=2)
            logits = logits.flip(3) if mirrored else logits
            rows = resized_rows(logits, size)
            if single:
                labels += [_best(band) for band in rows]
                continue
            if total is None:
                total = image.new_zeros((logits.shape[1], *size), dtype=torch.float32)
            top = 0
            for band in rows:
                total[:, top : top + band.shape[2]] += band[0].float().softmax(dim=0)
                top += band.shape[2]
    return torch.cat(labels) if total is None else _best(total[None])


def _best(logits: Tensor) -> Tensor:
    """(1, C, H, W) → uint8 (H, W), on the CPU."""
    return logits.argmax(dim=1)[0].to(torch.uint8).cpu()


def _bands(model: nn.Module, x: Tensor, inference: Inference, on_window: Callable[[], None] | None) -> Iterator[Tensor]:
    """Logits of the input from top to bottom, in bands (1, classes, rows, W)."""
    if inference.window is None:
        coarse = getattr(model, "coarse", model)(x)
        if on_window is not None:
            on_window()
        yield from resized_rows(coarse, x.shape[2:])
        return
    window, height, width = inference.window, x.shape[2], x.shape[3]
    columns = _starts(width, window, inference.stride)
    tops = _starts(height, window, inference.stride)
    sums: Tensor | None = None  # of the rows that one row of windows covers
    counts = torch.zeros(min(window, height), width, device=x.device)
    for number, top in enumerate(tops):
        rows = min(window, height)
        for left in columns:
            right = min(left + window, width)
            logits = model(x[:, :, top : top + rows, left:right]).float()
            if sums is None:
                sums = logits.new_zeros((1, logits.shape[1], rows, width))
            sums[:, :, :, left:right] += logits
            counts[:, left:right] += 1
            if on_window is not None:
                on_window()
        assert sums is not None
        done = (tops[number + 1] if number + 1 < len(tops) else height) - top  # no window below reaches these
        for first in range(0, done, _ROWS):
            last = min(first + _ROWS, done)
            yield sums[:, :, first:last] / counts[first:last]
        for buffer in (sums[0], counts):
            kept = buffer[..., done:, :].clone()
            buffer[..., : rows - done, :] = kept
            buffer[..., rows - done :, :] = 0


def _starts(length: int, window: int | None, stride: int | None) -> list[int]:
    """Starts of the windows along an axis; the last window ends with it."""
    if window is None or window >= length:
        return [0]
    stride = stride or (2 * window) // 3
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]


def resized_rows(logits: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
    """`vmamba.tasks.segmentation.heads.resize` in bands of rows: (1, C, h, w) → (1, C, rows, W) several times.

    The rows that a band needs are blended first, then resized along the other axis, so that nothing of the full size
    is held.
    """
    height, width = int(size[0]), int(size[1])
    source = logits.shape[2]
    if tuple(logits.shape[2:]) == (height, width):
        yield from logits.split(_ROWS, dim=2)
        return
    for top in range(0, height, _ROWS):
        rows = torch.arange(top, min(top + _ROWS, height), device=logits.device)
        position = ((rows + 0.5) * (source / height) - 0.5).clamp(min=0)
        upper = position.floor().long().clamp(max=source - 1)
        lower = (upper + 1).clamp(max=source - 1)
        weight = (position - upper)[:, None].to(logits.dtype)
        blended = logits[:, :, upper] * (1 - weight) + logits[:, :, lower] * weight
        yield resize(blended, (len(rows), width))
