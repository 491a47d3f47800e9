"""Options of a recipe that only classification knows."""

from __future__ import annotations

import reprlib
from typing import Annotated, Literal

from pydantic import Field, model_validator
from timm.data import create_transform

from vmamba.errors import OptionError
from vmamba.settings import Pair, Settings, Text

Fraction = Annotated[float, Field(ge=0, le=1)]


class ClassificationOptions(Settings):
    """Data, augmentation and loss.

    Attributes:
        format: What lies at `data`: ``"folder"`` (train/ and val/ with a folder, or a tar file, of class folders),
            ``"huggingface"`` (a data set's name or folder) or ``"shards"`` (WebDataset).
        train_split: Name of the training split (Hugging Face, shards).
        val_split: Name of the validation split (Hugging Face, shards).
        num_classes: Classes; None to count the class names. Shards need it.
        holdout: Fraction of the training images to validate on instead of a validation split.
        image_size: Height and width of the input in pixels; None for that of the checkpoint's description, else 224,
            or the images' own (median, a multiple of 32) where they are smaller and training starts from scratch.
        interpolation: Of resizing.
        crop_scale: Range of the random crop's area, as a fraction of the image's.
        crop_ratio: Range of the random crop's aspect ratio.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of random brightness, contrast and saturation; not used beside `auto_augment`.
        auto_augment: timm's name of a policy: ``"rand-m9-mstd0.5-inc1"``; None for none.
        random_erasing: Probability of erasing a rectangle with noise.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        mix_switch: Probability of CutMix where both are on.
        label_smoothing: Fraction of the target that is spread over all classes.
        keep_head: Keep the checkpoint's classifier, for the same classes.
        head_first: Begin with a classifier that is fitted to the checkpoint's features of all training images, instead
            of a random one: for few labels, since the CPU does it before the first step. Of no effect with `keep_head`.
        teacher: timm's name of a model to learn from (distillation), ours included.
        teacher_checkpoint: Its weights, trained on the same classes.
        teacher_size: Height and width of its input; None for that of the model's.
        teacher_weight: Weight of its logits against the labels.
        teacher_temperature: Divides both logits before they are compared.
        teacher_features: Weight of its features.
    """

    format: Literal["folder", "huggingface", "shards"] = "folder"
    train_split: str = "train"
    val_split: str = "val"
    num_classes: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    image_size: Annotated[int, Field(ge=32, le=16384)] | None = None
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"
    crop_scale: Pair = (0.08, 1.0)
    crop_ratio: Pair = (3 / 4, 4 / 3)
    hflip: Fraction = 0.5
    color_jitter: Fraction = 0.4
    auto_augment: str | None = None
    random_erasing: Fraction = 0.0
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    mix_switch: Fraction = 0.5
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    keep_head: bool = False
    head_first: bool = False
    teacher: str | None = None
    teacher_checkpoint: Text | None = None
    teacher_size: Annotated[int, Field(ge=32, le=16384)] | None = None
    teacher_weight: Fraction = 0.7
    teacher_temperature: Annotated[float, Field(gt=0, le=1000)] = 2.0
    teacher_features: Annotated[float, Field(ge=0, le=1e6)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> ClassificationOptions:
        if self.format == "shards" and self.num_classes is None:
            raise OptionError("shards do not say how many classes there are: set num_classes")
        if (self.teacher is None) != (self.teacher_checkpoint is None):
            raise OptionError("teacher and teacher_checkpoint go together: a model's name, and its trained weights")
        for name, limit in (("crop_scale", 1), ("crop_ratio", 100)):
            low, high = getattr(self, name)
            if not 1e-4 <= low <= high <= limit:
                raise OptionError(f"{name} must be a range from 0.0001 to {limit}, got {low:g} to {high:g}")
        if self.auto_augment is not None:
            try:
                create_transform(32, is_training=True, auto_augment=self.auto_augment)
            except Exception:  # timm raises nearly anything
                raise OptionError(
                    f"auto_augment: timm has no policy {reprlib.repr(self.auto_augment)}; one is rand-m9-mstd0.5-inc1"
                ) from None
        return self
