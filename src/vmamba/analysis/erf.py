"""Effective receptive field: which pixels the centre of the last feature map depends on, and how strongly.

Source: Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016;
as in Liu et al., "VMamba", NeurIPS 2024, section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vmamba.errors import OptionError

#: Fractions of the energy that tables list.
LEVELS = (0.2, 0.5, 0.9)


@dataclass(frozen=True)
class ReceptiveField:
    """The result of `receptive_field`.

    Attributes:
        energy: (H, W) float64: the magnitude of the gradient, summed over the image's channels, averaged over images.
        images: Number of images.
    """

    energy: Tensor
    images: int

    def pixels_holding(self, fraction: float) -> float:
        """The smallest fraction of the pixels that together hold this fraction of the energy; 0 without energy."""
        total = float(self.energy.sum())
        if not total:
            return 0.0
        held = self.energy.flatten().sort(descending=True).values.cumsum(0) / total
        return (int((held < fraction - 1e-12).sum()) + 1) / held.numel()


def receptive_field(model: nn.Module, images: Iterable[Tensor]) -> ReceptiveField:
    """Gradient of the channel sum at the centre of the last stage with respect to the pixels.

    Args:
        model: Ours or timm's: its last feature map before the final norm is taken (a final LayerNorm would make the sum
            of the channels a constant). Any other model must return a map (B, C, h, w) itself.
        images: Batches (B, C, H, W), all of one size; on the model's device.

    Raises:
        OptionError: Without images, or if the model gives no feature map.
    """
    training = model.training
    model.eval()
    energy, count = None, 0
    try:
        for batch in images:
            pixels = batch.detach().clone().requires_grad_()
            features = _last_map(model, pixels)
            centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
            (gradient,) = torch.autograd.grad(centre.sum(), pixels)
            magnitude = gradient.abs().double().sum((0, 1)).cpu()
            energy = magnitude if energy is None else energy + magnitude
            count += len(batch)
    finally:
        model.train(training)
    if energy is None:
        raise OptionError("a receptive field needs at least one image")
    return ReceptiveField(energy / count, count)


def _last_map(model: nn.Module, images: Tensor) -> Tensor:
    if hasattr(model, "forward_intermediates"):
        maps = model.forward_intermediates(images, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True)  # type: ignore[operator]
        return cast(Tensor, maps[-1])
    features: Tensor = model(images)
    if features.ndim != 4:
        raise OptionError(f"{type(model).__name__} returns shape {tuple(features.shape)}, not a map (B, C, h, w)")
    return features
