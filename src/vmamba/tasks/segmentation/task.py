"""Semantic segmentation as a task of the training engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from vmamba.checkpoints.saving import save_weights
from vmamba.data.dense_transforms import segmentation_training
from vmamba.data.loader import IndexedLoader
from vmamba.data.segmentation_folder import SegmentationFolder
from vmamba.data.summary import DataSummary
from vmamba.errors import CheckpointError
from vmamba.tasks.dense.backbone import backbone_config, job_checkpoint, load_backbone
from vmamba.tasks.protocol import Job, Loader, Metric
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.tasks.segmentation.inference import Inference, segment
from vmamba.tasks.segmentation.mean_iou import MeanIoU
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of a recipe that only segmentation knows.

    Attributes:
        crop: Side of the training crops in pixels.
        image_size: Short side of images, before they are scaled at random, and for evaluation; None for their own.
        max_size: Limit of the long side.
        scale: Range of the random factor on both.
        channels: Of the decoder.
        auxiliary_channels: Of the auxiliary head.
        window: Side of windows for evaluation; None for whole images.
        stride: From window to window; None for two thirds.
        scales: Sizes whose probabilities are averaged in evaluation.
        flip: Average with mirror images in evaluation.
        keep_head: Keep the checkpoint's classes, for the same data.
        label_values: The value in the label maps of each class of ``classes.txt``; None for 1, 2, 3 …, and 0 and 255
            for no class.
    """

    crop: int = 512
    image_size: int | None = 512
    max_size: int = 2048
    scale: tuple[float, float] = (0.5, 2.0)
    channels: int = 512
    auxiliary_channels: int = 256
    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    keep_head: bool = False
    label_values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.crop < 32:
            raise ValueError(f"crop must be at least 32 pixels, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be a range above 0, got {self.scale[0]} to {self.scale[1]}")
        if self.channels < 1 or self.auxiliary_channels < 1:
            raise ValueError("channels and auxiliary_channels must be at least 1")
        self.inference()

    def inference(self) -> Inference:
        """How validation images are segmented."""
        return Inference(self.image_size, self.max_size, self.window, self.stride, self.scales, self.flip)


class SegmentationBatch(NamedTuple):
    """Images with their labels: stacked for training, (B, 3, S, S) and (B, S, S); a tuple of uint8 images to evaluate.

    Attributes:
        images: Float and normalised, or as read.
        labels: int64, `vmamba.data.label_maps.IGNORE_INDEX` where there is none.
        files: Names.
    """

    images: Tensor | tuple[Tensor, ...]
    labels: Tensor | tuple[Tensor, ...]
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> SegmentationBatch:
        if isinstance(self.images, Tensor) and isinstance(self.labels, Tensor):
            images, labels = (x.to(device, non_blocking=True) for x in (self.images, self.labels))
            return self._replace(images=images, labels=labels)
        return self._replace(images=tuple(image.to(device, non_blocking=True) for image in self.images))


def stack(samples: Sequence[dict[str, Any]]) -> SegmentationBatch:
    """Training samples of one size → batch."""
    images = torch.stack([sample["image"].as_subclass(Tensor) for sample in samples])
    labels = torch.stack([sample["labels"].as_subclass(Tensor) for sample in samples]).long()
    return SegmentationBatch(images, labels, tuple(sample["file"] for sample in samples))


def side_by_side(samples: Sequence[dict[str, Any]]) -> SegmentationBatch:
    """Images of any size → batch."""
    return SegmentationBatch(
        tuple(sample["image"].as_subclass(Tensor) for sample in samples),
        tuple(sample["labels"].as_subclass(Tensor) for sample in samples),
        tuple(sample["file"] for sample in samples),
    )


class Segmentation:
    """See `vmamba.tasks.protocol.Task`."""

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[Metric] = Metric("miou")
    Options: ClassVar[type[Any]] = SegmentationOptions

    def __init__(self, job: Job, options: SegmentationOptions) -> None:
        self.job, self.options = job, options

    @cached_property
    def _val_data(self) -> SegmentationFolder:
        return self._open("val")

    def _open(self, split: str, transform: Any = None) -> SegmentationFolder:
        return SegmentationFolder(self.job.data, split, transform, label_values=self.options.label_values)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._val_data.classes

    def summary(self, *, verify: bool = False) -> DataSummary:
        parts = [self._open(split).summary(verify=verify) for split in ("train", "val")]
        return DataSummary(self.name, self.job.data, parts)

    def build_model(self) -> nn.Module:
        job, options = self.job, self.options
        checkpoint = job_checkpoint(job)
        if checkpoint is not None and checkpoint.task != "classification":
            model = load_segmenter(checkpoint, job.model, backbone_options=job.model_options)
            if not options.keep_head:
                model.reset_classes(self.labels)
            elif len(model.config.classes) != len(self.labels):
                raise CheckpointError(
                    f"{job.checkpoint}: knows {len(model.config.classes)} classes, the data have {len(self.labels)}; "
                    "train fresh classes (keep_head: false), or give the data that it was trained on"
                )
        else:
            config = UperNetConfig(
                backbone_config(job, checkpoint), self.labels, options.channels, options.auxiliary_channels
            )
            model = UperNet(config)
            load_backbone(model.vmamba, job, checkpoint)
        # Statistics are taken over all processes, as in the published training (SyncBN).
        synchronised = job.world_size > 1 and torch.cuda.is_available()
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model

    def train_loader(self) -> Loader:
        options = self.options
        if self.job.batch_size < 2:
            raise ValueError("UperNet's pyramid pooling normalises over a batch: at least 2 images per process")
        short = options.image_size or options.crop
        transform = segmentation_training(options.crop, short, options.max_size, options.scale)
        return IndexedLoader(self._open("train", transform), stack, training=True, **self._share())

    def val_loader(self) -> Loader:
        return IndexedLoader(self._val_data, side_by_side, training=False, **self._share())

    def _share(self) -> dict[str, Any]:
        names = ("batch_size", "seed", "rank", "world_size", "workers", "strict")
        return {name: getattr(self.job, name) for name in names}

    def loss(self, model: nn.Module, batch: SegmentationBatch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = model(batch.images, batch.labels)
        return {"loss": losses["decode"] + losses["auxiliary"], **losses}

    def evaluate(
        self, model: nn.Module, batches: Iterable[SegmentationBatch], output: Path | None = None
    ) -> dict[str, float]:
        inference, score = self.options.inference(), MeanIoU(len(self.labels))
        for batch in batches:
            for image, labels in zip(batch.images, batch.labels, strict=True):
                score.add(segment(model, image, inference), labels)
        score.sum_over_processes()
        if output is not None and self.job.rank == 0:
            score.write(output, self.labels)
        return score.results()

    def export(self, model: nn.Module, folder: Path) -> list[Path]:
        weights = save_weights(cast(UperNet, model), folder / "model.safetensors")
        return [weights, weights.with_suffix(".json")]
