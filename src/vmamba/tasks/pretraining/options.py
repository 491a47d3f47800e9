"""Options of a recipe that only pre-training knows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vmamba.errors import OptionError
from vmamba.settings import Pair, Settings

Fraction = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=32, le=16384)]
Width = Annotated[int, Field(ge=1, le=65536)]


class PretrainingOptions(Settings):
    """Data, and augmentation common to all methods.

    Attributes:
        format: What lies at `data`: ``"folder"`` (any tree of images, or one with train/ and val/), ``"huggingface"``
            (a data set's name or folder) or ``"shards"`` (WebDataset). Labels are not needed; those of validation
            images, where they lie in class folders or come with the data set, let a nearest-neighbour classifier watch.
        train_split: Name of the training split (Hugging Face, shards).
        val_split: Name of the validation split (Hugging Face, shards).
        holdout: Fraction of the training images to validate on; None for the validation split, or a twentieth where a
            folder has none.
        image_size: Height and width of the input in pixels; None for that of the checkpoint's description, else 224,
            or the images' own (median, a multiple of 32) where they are smaller and training starts from scratch.
        interpolation: Of resizing.
        crop_ratio: Range of the random crops' aspect ratio.
        hflip: Probability of a horizontal flip.
    """

    format: Literal["folder", "huggingface", "shards"] = "folder"
    train_split: str = "train"
    val_split: str = "val"
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    image_size: Pixels | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    crop_ratio: Pair = (3 / 4, 4 / 3)
    hflip: Fraction = 0.0

    @model_validator(mode="after")
    def _check(self) -> PretrainingOptions:
        if self.format == "shards" and self.holdout is not None:
            raise OptionError("holdout: shards are streamed and cannot be held out; put some of them into val/")
        for name, value in self:
            if isinstance(value, tuple):
                low, high = value
                limit = 1 if name.endswith("_scale") else 100
                if not 1e-4 <= low <= high <= limit:
                    raise OptionError(f"{name} must be a range from 0.0001 to {limit}, got {low:g} to {high:g}")
        return self


class LeJEPAOptions(PretrainingOptions):
    """Views, and the loss of LeJEPA.

    Attributes:
        local_size: Height and width of the local views in pixels; None for about half of `image_size`, a multiple of
            32.
        global_views: Large crops of each image.
        local_views: Small crops of each image.
        global_scale: Range of the large crops' area, as a fraction of the image's.
        local_scale: Likewise, of the small ones.
        color_jitter: Strength of random brightness, contrast, saturation and hue.
        hue: Strength of random hue; None for a quarter of `color_jitter`.
        grayscale: Probability of leaving the colours out.
        invert: Probability of a negative.
        blur: Probability of a Gaussian blur.
        sigreg_weight: Weight of SIGReg against the invariance, the method's one hyper-parameter: 0.01 to 0.1 in the
            paper.
        points: Points of each image whose features are embedded, of the maps of all stages: for segmentation and
            detection. 0 to embed the pooled features of the last stage.
        directions: Random directions that embeddings are projected on, at each step.
        hidden: Width of the projector.
        embedding: Width of its output, in which the loss is taken.
    """

    local_size: Pixels | None = None
    global_views: Annotated[int, Field(ge=1, le=64)] = 2
    local_views: Annotated[int, Field(ge=0, le=64)] = 2
    global_scale: Pair = (0.3, 1.0)
    local_scale: Pair = (0.2, 0.6)
    color_jitter: Fraction = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] | None = None
    grayscale: Fraction = 0.0
    invert: Fraction = 0.0
    blur: Fraction = 0.0
    sigreg_weight: Fraction = 0.05
    points: Annotated[int, Field(ge=0, le=4096)] = 0
    directions: Width = 1024
    hidden: Width = 512
    embedding: Width = 64

    @model_validator(mode="after")
    def _check_views(self) -> LeJEPAOptions:
        if self.global_views + self.local_views < 2:
            raise OptionError("two views of an image are needed: global_views + local_views must be at least 2")
        return self


class SimMIMOptions(PretrainingOptions):
    """Masks, and the crop, of masked image modelling.

    Attributes:
        crop_scale: Range of the random crop's area, as a fraction of the image's.
        mask_ratio: Fraction of the image that is masked.
        mask_size: Height and width of the masked squares in pixels, a multiple of 4; None for the largest of 32, 16, 8
            and 4 of which six lie beside each other.
    """

    crop_scale: Pair = (0.67, 1.0)
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    mask_size: Annotated[int, Field(ge=4, le=1024, multiple_of=4)] | None = None
