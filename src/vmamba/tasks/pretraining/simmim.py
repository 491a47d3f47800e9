"""Masked image modelling (Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", arXiv:2111.09886).

Masked squares are blanked, their tokens replaced after the stem, and the pixels predicted by one linear layer. They are
blanked in the image, too, since an overlapping stem would let their neighbours see a rim of them.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from vmamba.data.views import RandomView
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba
from vmamba.settings import Settings
from vmamba.tasks.pretraining.options import SimMIMOptions
from vmamba.tasks.pretraining.task import Pretrainer, Pretraining, ViewBatch

_STEM, _STRIDE = 4, 32


class SimMIMPretrainer(Pretrainer):
    """A backbone with a mask token and a decoder of one layer.

    Args:
        backbone: Without a classifier.
    """

    def __init__(self, backbone: VMamba) -> None:
        super().__init__(backbone)
        self.mask_token = nn.Parameter(torch.empty(1, backbone.feature_info[0]["num_chs"], 1, 1))
        trunc_normal_(self.mask_token, std=0.02)
        self.decoder = nn.Conv2d(backbone.num_features, 3 * _STRIDE**2, 1)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"mask_token"}

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predicted pixels (N, 3, H, W) of images of which `mask` (N, 1, H/4, W/4), bool, is hidden."""
        visible = images.masked_fill(F.interpolate(mask.float(), size=images.shape[2:]) > 0, 0.0)
        tokens = self.backbone.stem(visible)
        tokens = torch.where(mask, self.mask_token.to(tokens.dtype), tokens)
        return F.pixel_shuffle(self.decoder(self.backbone.forward_tokens(tokens)), _STRIDE)


class Grid(NamedTuple):
    """The squares that are masked or not: their size in pixels, how many lie beside each other, how many are masked."""

    size: int
    length: int
    masked: int

    def random_mask(self, images: int) -> Tensor:
        """(N, 1, H/4, W/4), bool, with as many masked squares in every image; drawn by the CPU's generator."""
        ranks = torch.rand(images, self.length**2).argsort(1).argsort(1)
        mask = (ranks < self.masked).view(images, 1, self.length, self.length)
        cell = self.size // _STEM
        return mask.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


class SimMIM(Pretraining):
    """See `vmamba.tasks.protocol.Task`."""

    name: ClassVar[str] = "simmim"
    Options: ClassVar[type[Settings]] = SimMIMOptions

    @property
    def _options(self) -> SimMIMOptions:
        return cast(SimMIMOptions, self.options)

    def setup(self, *, training: bool = True) -> None:
        super().setup(training=training)
        size = cast(int, self.options.image_size)
        if size % _STRIDE:
            raise OptionError(f"image_size must be a multiple of {_STRIDE} to predict every pixel, got {size}")
        usual = next((width for width in (32, 16, 8) if size >= 6 * width), 4)
        mask_size = self._options.mask_size or usual
        if size % mask_size or size == mask_size:
            raise OptionError(f"mask_size must divide image_size ({size}) and be smaller, got {mask_size}")
        self.options = self.options.replace(mask_size=mask_size)

    @property
    def grid(self) -> Grid:
        """The squares to mask."""
        size = cast(int, self._options.mask_size)
        length = cast(int, self.options.image_size) // size
        return Grid(size, length, min(max(1, round(self._options.mask_ratio * length**2)), length**2 - 1))

    def views(self) -> list[tuple[int, RandomView]]:
        options, prepare = self._options, self.preprocessing
        view = RandomView(
            cast(int, options.image_size),
            scale=options.crop_scale,
            ratio=options.crop_ratio,
            mean=prepare.mean,
            std=prepare.std,
            interpolation=options.interpolation,
            hflip=options.hflip,
        )
        return [(1, view)]

    def build_pretrainer(self, backbone: VMamba) -> Pretrainer:
        return SimMIMPretrainer(backbone)

    def loss(self, model: nn.Module, batch: ViewBatch, *, distributed: bool | None = None) -> dict[str, Tensor]:
        (images,) = batch.views[0]
        mask = self.grid.random_mask(len(images)).to(images.device)
        predicted = model(images, mask).float()
        hidden = F.interpolate(mask.float(), size=images.shape[2:])
        # As many pixels are masked in every image, so this is the mean over images.
        return {"loss": ((predicted - images).abs() * hidden).sum() / (hidden.sum() * images.shape[1])}
