"""Compare an exported model with PyTorch before its file is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vmamba.errors import ExportError

#: Relative error in norm that an exported model may have, by the dtype it computes in.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}
#: Of the boxes, scores, labels and masks of a detector.
DETECTIONS = 1e-3
#: Of products in 8 bits. A failure of the translation is far above it; whether it will do is for the user to say.
QUANTIZED = 0.5


def verification_shapes(example: Sequence[int], dynamic: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes to compare on: the example's and, where they may differ, another batch and two other sizes, one odd."""
    batch, channels, height, width = example
    shapes: list[tuple[int, ...]] = [(batch, channels, height, width)]
    if "batch" in dynamic:
        shapes.append((batch + 1, channels, height, width))
    if "size" in dynamic:
        shapes += [(batch, channels, height // 2 + 32, width + 64), (batch, channels, 65, 97)]
    return shapes


def verify(
    model: nn.Module,
    run: Callable[[Tensor], Sequence[Tensor]],
    examples: Sequence[Tensor],
    tolerance: float,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Largest relative error in norm over examples and results.

    Args:
        model: The truth, float32; takes images, returns a tensor or a list of them.
        run: The exported model.
        examples: Batches of images (B, C, H, W), float32.
        tolerance: Largest error that is accepted.
        dtype: Dtype of the images that `run` takes.

    Raises:
        ExportError: If a result has another shape, is not finite, or differs by more than `tolerance`.
    """
    largest = 0.0
    for images in examples:
        with torch.no_grad():
            expected = model(images)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        for truth, result in zip(expected, run(images.to(dtype)), strict=True):
            if truth.shape != result.shape:
                raise ExportError(
                    f"the exported model gives {tuple(result.shape)} instead of {tuple(truth.shape)} "
                    f"for images of shape {tuple(images.shape)}; nothing was written"
                )
            error = float((result.float() - truth.float()).norm() / truth.float().norm().clamp_min(1e-30))
            if not error <= tolerance:  # a NaN, too
                raise ExportError(
                    f"the exported model differs from PyTorch by {error:.1e} (at most {tolerance:.0e} is accepted) "
                    f"for images of shape {tuple(images.shape)}; nothing was written"
                )
            largest = max(largest, error)
    return largest
