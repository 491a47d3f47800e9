"""Options of a recipe that only detection knows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vmamba.errors import OptionError
from vmamba.settings import Settings

Width = Annotated[int, Field(ge=1, le=65536)]
Pixels = Annotated[int, Field(ge=32, le=16384)]


class DetectionOptions(Settings):
    """Augmentation, and the size of the head.

    Attributes:
        augmentation: ``"1x"``: one scale and flips; ``"3x"``: many scales, half of the time of a crop.
        image_size: Short side of the input in pixels.
        max_size: Limit of its long side.
        group_by_aspect: Put portrait and landscape images into separate batches.
        channels: Of the feature pyramid.
        box_channels: Hidden units of the box head.
        mask_channels: Of the mask head.
        proposals: Regions that the second stage looks at, per image.
        samples: Of these, how many it learns from.
        keep_head: Keep the checkpoint's classes, for the same data.
    """

    augmentation: Literal["1x", "3x"] = "1x"
    image_size: Pixels = 800
    max_size: Pixels = 1333
    group_by_aspect: bool = True
    channels: Width = 256
    box_channels: Width = 1024
    mask_channels: Width = 256
    proposals: Width = 1000
    samples: Width = 512
    keep_head: bool = False

    @model_validator(mode="after")
    def _check(self) -> DetectionOptions:
        if self.image_size > self.max_size:
            raise OptionError(f"image_size must be from 32 to max_size, got {self.image_size} and {self.max_size}")
        return self
