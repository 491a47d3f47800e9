"""Semantic segmentation as a task of the training engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vmamba.checkpoints.info import Preprocessing, info_path
from vmamba.checkpoints.saving import save_weights
from vmamba.data.dense_transforms import segmentation_training
from vmamba.data.loader import IndexedLoader
from vmamba.data.segmentation_folder import SegmentationFolder
from vmamba.data.summary import DataSummary
from vmamba.errors import CheckpointError, OptionError
from vmamba.settings import Settings
from vmamba.tasks.dense.backbone import backbone_config, job_checkpoint, load_backbone
from vmamba.tasks.protocol import RGB, Job, Loader, Metric, check_model_options
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.tasks.segmentation.inference import segment
from vmamba.tasks.segmentation.mean_iou import MeanIoU
from vmamba.tasks.segmentation.options import SegmentationOptions
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig


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


def collate_any_size(samples: Sequence[dict[str, Any]]) -> SegmentationBatch:
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
    Options: ClassVar[type[Settings]] = SegmentationOptions

    def __init__(self, job: Job, options: SegmentationOptions) -> None:
        check_model_options(job)
        self.job, self.options = job, options

    def setup(self, *, training: bool = True) -> None:
        options = self.options
        self.val_data = self._open("val")
        if training:
            if self.job.batch_size < 2:
                raise OptionError("UperNet's pyramid pooling normalises over a batch: at least 2 images per process")
            short = options.image_size or options.crop
            transform = segmentation_training(options.crop, short, options.max_size, options.scale)
            self.train_data = self._open("train", transform)

    def _open(self, split: str, transform: Any = None) -> SegmentationFolder:
        job, values = self.job, self.options.label_values
        return SegmentationFolder(job.data, split, transform, label_values=values, max_pixels=job.max_pixels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.val_data.classes

    def summary(self, *, verify: bool = False) -> DataSummary:
        parts = [self.train_data.summary(verify=verify), self.val_data.summary(verify=verify)]
        return DataSummary(self.name, self.job.data, parts)

    def build_model(self) -> nn.Module:
        job, options = self.job, self.options
        checkpoint = job_checkpoint(job)
        if checkpoint is not None and checkpoint.task != "classification":
            model = load_segmenter(checkpoint, job.model, backbone_options=RGB | job.model_options)
            if not options.keep_head:
                model.reset_classes(self.labels)
            elif len(model.config.classes) != len(self.labels):
                raise CheckpointError(
                    f"{job.checkpoint}: knows {len(model.config.classes)} classes, the data have {len(self.labels)}; "
                    "train fresh classes (keep_head: false), or give the data that it was trained on"
                )
        else:
            backbone = backbone_config(job, checkpoint)
            config = UperNetConfig(backbone, self.labels, options.channels, options.auxiliary_channels)
            model = UperNet(config)
            load_backbone(model.vmamba, job, checkpoint)
        # Statistics are taken over all processes, as in the published training (SyncBN).
        synchronised = job.world_size > 1 and torch.cuda.is_available()
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model

    def train_loader(self) -> Loader:
        return IndexedLoader(self.train_data, stack, training=True, **self.job.loader_options)

    def val_loader(self) -> Loader:
        return IndexedLoader(self.val_data, collate_any_size, training=False, **self.job.loader_options)

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

    def export(self, model: nn.Module, folder: Path, training: Mapping[str, Any]) -> list[Path]:
        preprocessing = Preprocessing(self.options.image_size, self.options.max_size, interpolation="bilinear")
        path = folder / "model.safetensors"
        weights = save_weights(model, path, preprocessing=preprocessing, training=training)
        return [weights, info_path(weights)]
