"""Options of a recipe that only segmentation knows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, model_validator

from vmamba.errors import OptionError
from vmamba.settings import Numbers, Pair, Settings
from vmamba.tasks.segmentation.inference import Inference

Width = Annotated[int, Field(ge=1, le=65536)]
Value = Annotated[int, Field(ge=0, le=65535)]
Pixels = Annotated[int, Field(ge=32, le=16384)]


class SegmentationOptions(Settings):
    """Augmentation, the size of the heads, and how images are segmented for evaluation.

    Attributes:
        crop: Height and width of the training crops in pixels.
        image_size: Short side of images, before they are scaled at random, and for evaluation; None for their own.
        max_size: Limit of the long side.
        scale: Range of the random factor on both.
        channels: Of the decoder.
        auxiliary_channels: Of the auxiliary head.
        window: Height and width of windows for evaluation; None for whole images.
        stride: From window to window; None for two thirds.
        scales: Sizes whose probabilities are averaged in evaluation.
        flip: Average with mirror images in evaluation.
        keep_head: Keep the checkpoint's classes, for the same data.
        label_values: The value in the label maps of each class of ``classes.txt``; None for 1, 2, 3 …, and 0 and 255
            for no class.
    """

    crop: Pixels = 512
    image_size: Pixels | None = 512
    max_size: Pixels = 2048
    scale: Pair = (0.5, 2.0)
    channels: Width = 512
    auxiliary_channels: Width = 256
    window: Pixels | None = None
    stride: Width | None = None
    scales: Numbers = (1.0,)
    flip: bool = False
    keep_head: bool = False
    label_values: Annotated[tuple[Value, ...], Strict(False)] | None = None

    @model_validator(mode="after")
    def _check(self) -> SegmentationOptions:
        if not 0.01 <= self.scale[0] <= self.scale[1] <= 100:
            raise OptionError(f"scale must be a range from 0.01 to 100, got {self.scale[0]:g} to {self.scale[1]:g}")
        self.inference()
        return self

    def inference(self) -> Inference:
        """Inference on validation images."""
        return Inference(self.image_size, self.max_size, self.window, self.stride, self.scales, self.flip)
