"""Image classification as a task of the training engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from vmamba.checkpoints.saving import save_weights
from vmamba.data.classification_transforms import training_transform
from vmamba.data.image_dataset import ImageDataset, Sample, median_size
from vmamba.data.loader import IndexedLoader
from vmamba.data.shards import ShardLoader, find_shards
from vmamba.data.summary import DataSummary
from vmamba.errors import CheckpointError, ImageError
from vmamba.model.backbone import VMamba
from vmamba.tasks.classification.accuracy import Accuracy
from vmamba.tasks.classification.data import ClassificationData
from vmamba.tasks.classification.prediction import evaluation_transform
from vmamba.tasks.protocol import Job, Loader, Metric
from vmamba.zoo import create_model, model_from_checkpoint

#: Side of the input where images are larger or the weights were trained on it.
USUAL_SIZE = 224
FORMATS = ("folder", "huggingface", "shards")


@dataclass(frozen=True)
class ClassificationOptions:
    """Options of a recipe that only classification knows.

    Attributes:
        format: What lies at `data`: ``"folder"`` (train/ and val/ with a folder, or a tar file, of class folders),
            ``"huggingface"`` (a data set's name or folder) or ``"shards"`` (WebDataset).
        train_split: Name of the training split (Hugging Face, shards).
        val_split: Name of the validation split (Hugging Face, shards).
        num_classes: Classes; None to count the class names. Shards need it.
        holdout: Share of the training images to validate on where there is no validation split.
        image_size: Side of the input in pixels; None for 224, or the images' own (median, a multiple of 32) where
            they are smaller and training starts from scratch.
        interpolation: Of resizing.
        crop_scale: Range of the random crop's share of the image's area.
        crop_ratio: Range of the random crop's aspect ratio.
        hflip: Probability of a horizontal flip.
        color_jitter: Strength of random brightness, contrast and saturation; not used beside `auto_augment`.
        auto_augment: timm's name of a policy: ``"rand-m9-mstd0.5-inc1"``; None for none.
        random_erasing: Probability of erasing a rectangle with noise.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of CutMix; 0 for none.
        mix_switch: Probability of CutMix where both are on.
        label_smoothing: Share of the target that is spread over all classes.
        keep_head: Keep the checkpoint's classifier, for the same classes.
    """

    format: str = "folder"
    train_split: str = "train"
    val_split: str = "val"
    num_classes: int | None = None
    holdout: float = 0.0
    image_size: int | None = None
    interpolation: str = "bicubic"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.4
    auto_augment: str | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch: float = 0.5
    label_smoothing: float = 0.1
    keep_head: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if self.format == "shards" and self.num_classes is None:
            raise ValueError("shards do not say how many classes there are: set num_classes")
        if self.image_size is not None and self.image_size < 32:
            raise ValueError(f"image_size must be at least 32, got {self.image_size}")
        for name in ("holdout", "hflip", "random_erasing", "mix_switch", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a range above 0, got {low} to {high}")


class ImageBatch(NamedTuple):
    """Images (B, 3, S, S) float32, labels (B,) int64, names of their files."""

    images: Tensor
    labels: Tensor
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> ImageBatch:
        images, labels = (x.to(device, non_blocking=True) for x in (self.images, self.labels))
        return ImageBatch(images, labels, self.files)


def collate(samples: Sequence[Sample]) -> ImageBatch:
    """Samples of one size → batch."""
    labels = torch.tensor([sample.label for sample in samples])
    return ImageBatch(torch.stack([s.pixels for s in samples]), labels, tuple(s.name for s in samples))


class Classification:
    """See `vmamba.tasks.protocol.Task`."""

    name: ClassVar[str] = "classification"
    metric: ClassVar[Metric] = Metric("top1")
    Options: ClassVar[type[Any]] = ClassificationOptions

    def __init__(self, job: Job, options: ClassificationOptions) -> None:
        if (options.mixup or options.cutmix) and job.batch_size % 2:
            raise ValueError(f"mixup and CutMix need an even number of images per process, got {job.batch_size}")
        self.job, self.options = job, options

    @cached_property
    def data(self) -> ClassificationData:
        """The splits."""
        names = ("format", "train_split", "val_split", "num_classes", "holdout")
        return ClassificationData(
            self.job.data, seed=self.job.seed, **{name: getattr(self.options, name) for name in names}
        )

    def summary(self, *, verify: bool = False) -> DataSummary:
        return self.data.summary(verify=verify)

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return self.data.classes

    @property
    def num_classes(self) -> int:
        return len(self.data.classes)

    @cached_property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        if self.options.image_size:
            return self.options.image_size
        if self.options.format == "shards" or self.job.checkpoint or self.job.pretrained:
            return USUAL_SIZE
        size = median_size(self.data.train)
        return min(USUAL_SIZE, max(32, -(-size // 32) * 32))

    # ----------------------------------------------------------------------------------------------------------------
    # The model

    def build_model(self) -> nn.Module:
        job = self.job
        if job.checkpoint is None:
            if job.model is None:
                raise ValueError("which model? give --model NAME; 'vmamba models' lists them")
            options = {**job.model_options, "num_classes": self.num_classes}
            return create_model(job.model, pretrained=job.pretrained, **options)
        model = model_from_checkpoint(job.checkpoint, job.model, weights=job.weights, **job.model_options)
        if not self.options.keep_head:
            model.reset_classifier(self.num_classes)
        self._check_classes(model)
        return model

    def _check_classes(self, model: nn.Module) -> None:
        if model.num_classes != self.num_classes:
            raise CheckpointError(
                f"{self.job.checkpoint}: its classifier has {model.num_classes} classes, the data {self.num_classes}; "
                "train a fresh classifier (keep_head: false), or give the data that it was trained on"
            )

    # ----------------------------------------------------------------------------------------------------------------
    # Data

    def train_loader(self) -> Loader:
        files = None if self.options.format == "shards" else self.data.train
        self.options = dataclasses.replace(self.options, image_size=self.image_size, num_classes=self.num_classes)
        options = self.options
        transform = training_transform(
            self.image_size,
            scale=options.crop_scale,
            ratio=options.crop_ratio,
            hflip=options.hflip,
            color_jitter=options.color_jitter,
            auto_augment=options.auto_augment,
            interpolation=options.interpolation,
            re_prob=options.random_erasing,
            re_mode="pixel",
        )
        if files is None:
            return self._shards(options.train_split, transform, training=True)
        return self._indexed(ImageDataset(files, transform, self.data.train_indices), training=True)

    def val_loader(self) -> Loader:
        options = self.options
        transform = self.eval_transform(self.image_size)
        if options.format == "shards":
            return self._shards(options.val_split, transform, training=False)
        return self._indexed(ImageDataset(self.data.val, transform, self.data.val_indices), training=False)

    def eval_transform(self, image_size: int) -> Callable[[Image.Image], Tensor]:
        """Preprocessing of validation images, the same as prediction's."""
        settings = {"img_size": image_size, "interpolation": self.options.interpolation, "crop_pct": 0.875}
        return evaluation_transform(resolve_data_config(settings))

    def _indexed(self, images: ImageDataset, training: bool) -> Loader:
        return IndexedLoader(images, collate, training=training, **self._share())

    def _shards(self, split: str, transform: Callable[[Image.Image], Tensor], training: bool) -> Loader:
        classes = self.num_classes

        def sample(image: Image.Image, label: int, name: str) -> Sample:
            if not 0 <= label < classes:
                raise ImageError(f"{name}: its class is {label}, but num_classes is {classes}")
            return Sample(transform(image), label, name)

        return ShardLoader(find_shards(self.job.data, split), sample, collate, training=training, **self._share())

    def _share(self) -> dict[str, Any]:
        names = ("batch_size", "seed", "rank", "world_size", "workers", "strict")
        return {name: getattr(self.job, name) for name in names}

    # ----------------------------------------------------------------------------------------------------------------
    # Loss and results

    @cached_property
    def _mix(self) -> Mixup | None:
        options = self.options
        if not options.mixup and not options.cutmix:
            return None
        return Mixup(
            mixup_alpha=options.mixup,
            cutmix_alpha=options.cutmix,
            switch_prob=options.mix_switch,
            label_smoothing=options.label_smoothing,
            num_classes=self.num_classes,
        )

    def loss(self, model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        if self._mix is None:
            logits = model(batch.images).float()
            return {"loss": F.cross_entropy(logits, batch.labels, label_smoothing=self.options.label_smoothing)}
        images, targets = self._mix(batch.images.clone(), batch.labels)  # it works in place
        return {"loss": SoftTargetCrossEntropy()(model(images).float(), targets)}

    def evaluate(self, model: nn.Module, batches: Iterable[ImageBatch], output: Path | None = None) -> dict[str, float]:
        accuracy = Accuracy(self.num_classes, next(model.parameters()).device)
        for batch in batches:
            accuracy.add(model(batch.images), batch.labels)
        accuracy.sum_over_processes()
        if output is not None and self.job.rank == 0:
            accuracy.write(output, self.labels)
        return accuracy.results()

    def export(self, model: nn.Module, folder: Path) -> list[Path]:
        assert isinstance(model, VMamba)
        weights = save_weights(model, folder / "model.safetensors")
        labels = folder / "labels.txt"
        labels.write_text("\n".join(self.labels) + "\n", encoding="utf-8")
        return [weights, weights.with_suffix(".json"), labels]
