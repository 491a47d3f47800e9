"""Image classification as a task of the training engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from vmamba.checkpoints.info import ModelInfo, Preprocessing, info_path
from vmamba.checkpoints.loading import adapted
from vmamba.checkpoints.recognition import Checkpoint, open_checkpoint
from vmamba.checkpoints.saving import save_weights
from vmamba.data.classification_transforms import training_transform
from vmamba.data.image_dataset import ImageDataset, Sample, median_size
from vmamba.data.image_folder import LabelledFiles
from vmamba.data.loader import IndexedLoader
from vmamba.data.shard_files import find_shards
from vmamba.data.shards import ShardLoader, check_label
from vmamba.data.summary import DataSummary
from vmamba.errors import CheckpointError, DataError, MissingPackageError, OptionError
from vmamba.files import atomic_write
from vmamba.settings import Settings
from vmamba.tasks.classification.accuracy import Accuracy
from vmamba.tasks.classification.data import ClassificationData
from vmamba.tasks.classification.distillation import FeatureTap, Teacher, features_loss, logits_loss
from vmamba.tasks.classification.linear_probe import fit_classifier
from vmamba.tasks.classification.options import ClassificationOptions
from vmamba.tasks.classification.pictures import Mistakes, draw_confusion
from vmamba.tasks.classification.prediction import Transform, evaluation_transform
from vmamba.tasks.protocol import RGB, Job, Loader, Metric, check_model_options
from vmamba.zoo import create_model, model_from_checkpoint

#: Height and width of the input where neither images nor weights say otherwise.
DEFAULT_SIZE = 224


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
    Options: ClassVar[type[Settings]] = ClassificationOptions

    def __init__(self, job: Job, options: ClassificationOptions) -> None:
        if (options.mixup or options.cutmix) and job.batch_size % 2:
            raise OptionError(f"mixup and CutMix need an even number of images per process, got {job.batch_size}")
        check_model_options(job)
        self.job, self.options = job, options
        self.preprocessing = Preprocessing()
        self.checkpoint: Checkpoint | None = None
        self._teacher: Teacher | None = None

    def setup(self, *, training: bool = True) -> None:
        job, options = self.job, self.options
        if training and options.format != "shards":
            self.data.train  # noqa: B018 - its own error, where there are none
        if self.num_classes < 2:
            raise DataError(f"{job.data}: there is nothing to tell apart, the only class is {self.labels[0]!r}")
        known: Preprocessing | None = None
        if job.checkpoint is not None:
            self.checkpoint = open_checkpoint(job.checkpoint, job.weights)
            info = adapted(self.checkpoint, in_chans=RGB["in_chans"]).info
            known = info.preprocessing if info is not None else None
        size = options.image_size or (known.image_size if known is not None else None) or self._default_size()
        self.options = options.replace(num_classes=self.num_classes, image_size=size)
        prepare = Preprocessing(interpolation=options.interpolation)
        if known is not None:  # its colours always, its way of resizing where its classifier stays
            prepare = known if options.keep_head else dataclasses.replace(prepare, mean=known.mean, std=known.std)
        self.preprocessing = dataclasses.replace(prepare, image_size=size, max_size=None)
        if training and options.teacher is not None and options.teacher_checkpoint is not None:
            weights, prepared = options.teacher_checkpoint, self.preprocessing
            self._teacher = Teacher(options.teacher, weights, self.num_classes, prepared, options.teacher_size)

    @property
    def image_size(self) -> int:
        """Height and width of the input in pixels."""
        return int(self.options.image_size or DEFAULT_SIZE)

    def _default_size(self) -> int:
        if self.options.format == "shards" or self.job.checkpoint or self.job.pretrained:
            return DEFAULT_SIZE
        size = median_size(self.data.train, max_pixels=self.job.max_pixels)
        return min(DEFAULT_SIZE, max(32, -(-size // 32) * 32))

    @cached_property
    def data(self) -> ClassificationData:
        """The splits."""
        job, names = self.job, ("format", "train_split", "val_split", "num_classes", "holdout")
        options = {name: getattr(self.options, name) for name in names}
        return ClassificationData(job.data, seed=job.seed, max_pixels=job.max_pixels, **options)

    def summary(self, *, verify: bool = False) -> DataSummary:
        return self.data.summary(verify=verify)

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return self.data.classes

    @property
    def num_classes(self) -> int:
        return len(self.data.classes)

    # ----------------------------------------------------------------------------------------------------------------
    # The model

    def build_model(self) -> nn.Module:
        job, checkpoint = self.job, self.checkpoint
        options: dict[str, Any] = RGB | job.model_options
        if checkpoint is None:
            if job.model is None:
                raise OptionError("which model? give --model NAME; 'vmamba models' lists them")
            options |= {"num_classes": self.num_classes}
            model = create_model(job.model, pretrained=job.pretrained, **options)
        else:
            model = model_from_checkpoint(checkpoint, job.model, **options)
            if not self.options.keep_head:
                model.reset_classifier(self.num_classes)
            self._check_classes(model)
        if self.options.head_first and not self.options.keep_head:
            if checkpoint is None and not job.pretrained:
                raise OptionError("head_first needs weights to start from: give --checkpoint FILE or --pretrained")
            fit_classifier(model, self._all_training_images().batches(0))
        return self._tapped(model)

    def _tapped(self, model: nn.Module) -> nn.Module:
        """The model, with its features within reach where a teacher wants to compare them."""
        if self._teacher is not None:
            self._tap = FeatureTap(model)
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
        options, preprocessing = self.options, self.preprocessing
        transform = training_transform(
            self.image_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            scale=options.crop_scale,
            ratio=options.crop_ratio,
            hflip=options.hflip,
            color_jitter=options.color_jitter,
            auto_augment=options.auto_augment,
            interpolation=options.interpolation,
            re_prob=options.random_erasing,
            re_mode="pixel",
        )
        if options.format == "shards":
            return self._shards(options.train_split, transform, training=True)
        return self._indexed(self.data.train, transform, self.data.train_indices, training=True)

    def val_loader(self) -> Loader:
        return self.evaluation_loader("val")

    def evaluation_loader(self, split: Literal["train", "val"]) -> Loader:
        """Every image of a split once, prepared as for validation."""
        data, transform = self.data, self.eval_transform()
        if self.options.format == "shards":
            return self._shards(data.splits[split], transform, training=False)
        files, indices = (data.train, data.train_indices) if split == "train" else (data.val, data.val_indices)
        return self._indexed(files, transform, indices, training=False)

    def _all_training_images(self) -> Loader:
        """Every training image once in this process, prepared as for validation."""
        if self.options.format == "shards":
            raise OptionError("head_first: shards are streamed; set it to false, or use a folder of images")
        images = ImageDataset(
            self.data.train, self.eval_transform(), self.data.train_indices, max_pixels=self.job.max_pixels
        )
        return IndexedLoader(images, collate, training=False, **self.job.loader_options | {"rank": 0, "world_size": 1})

    def eval_transform(self) -> Callable[[Image.Image], Tensor]:
        """Preprocessing of validation images, the same as prediction's."""
        settings = ModelInfo(preprocessing=self.preprocessing).pretrained_cfg
        return evaluation_transform(resolve_data_config({}, pretrained_cfg=settings))

    def _indexed(self, files: LabelledFiles, transform: Transform, indices: Sequence[int], *, training: bool) -> Loader:
        images = ImageDataset(files, transform, indices, max_pixels=self.job.max_pixels)
        return IndexedLoader(images, collate, training=training, **self.job.loader_options)

    def _shards(self, split: str, transform: Callable[[Image.Image], Tensor], training: bool) -> Loader:
        classes = self.num_classes

        def sample(image: Image.Image, label: int, name: str) -> Sample:
            check_label(label, name, classes)
            return Sample(transform(image), label, name)

        shards, options = find_shards(self.job.data, split), self.job.loader_options
        return ShardLoader(shards, sample, collate, training=training, max_pixels=self.job.max_pixels, **options)

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
            images, logits = batch.images, model(batch.images).float()
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.options.label_smoothing)
        else:
            images, targets = self._mix(batch.images.clone(), batch.labels)  # it works in place
            logits = model(images).float()
            loss = SoftTargetCrossEntropy()(logits, targets)
        return {"loss": loss} if self._teacher is None else self._distilled(loss, logits, images)

    def _distilled(self, labels: Tensor, logits: Tensor, images: Tensor) -> dict[str, Tensor]:
        """The loss on labels joined by those of imitating the teacher."""
        assert self._teacher is not None
        options = self.options
        taught, features = self._teacher(images)
        imitation = logits_loss(logits, taught, options.teacher_temperature)
        resemblance = features_loss(self._tap.features, features)
        loss = (1 - options.teacher_weight) * labels + options.teacher_weight * imitation
        loss = loss + options.teacher_features * resemblance
        return {"loss": loss, "labels": labels, "teacher_logits": imitation, "teacher_features": resemblance}

    def evaluate(self, model: nn.Module, batches: Iterable[ImageBatch], output: Path | None = None) -> dict[str, float]:
        accuracy = Accuracy(self.num_classes, next(model.parameters()).device)
        mistakes = Mistakes(self.preprocessing.mean, self.preprocessing.std)
        for batch in batches:
            logits = model(batch.images)
            accuracy.add(logits, batch.labels)
            if output is not None:
                mistakes.add(batch.images, logits, batch.labels, batch.files)
        accuracy.sum_over_processes()
        if output is not None:
            mistakes.gather()
            if self.job.rank == 0:
                accuracy.write(output, self.labels)
                with suppress(MissingPackageError):  # without matplotlib there are no pictures
                    mistakes.write(output, self.labels)
                    draw_confusion(output / "confusion.png", accuracy.confusion, self.labels)
        return accuracy.results()

    def export(self, model: nn.Module, folder: Path, training: Mapping[str, Any]) -> list[Path]:
        weights = save_weights(
            model,
            folder / "model.safetensors",
            class_names=self.labels,
            preprocessing=self.preprocessing,
            training=training,
        )
        labels = folder / "labels.txt"
        with atomic_write(labels) as file:
            file.write("".join(f"{name}\n" for name in self.labels).encode(errors="surrogateescape"))
        return [weights, info_path(weights), labels]
