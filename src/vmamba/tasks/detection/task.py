"""Detection and instance segmentation as a task of the training engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.checkpoints.info import Preprocessing, info_path
from vmamba.checkpoints.saving import save_weights
from vmamba.data.aspect_ratio_grouping import AspectRatioGroupedLoader
from vmamba.data.coco import CocoInstances, find_split
from vmamba.data.dense_transforms import detection_evaluation, detection_training
from vmamba.data.loader import IndexedLoader
from vmamba.data.summary import DataSummary
from vmamba.errors import CheckpointError, DataError
from vmamba.settings import Settings
from vmamba.tasks.dense.backbone import backbone_config, job_checkpoint, load_backbone
from vmamba.tasks.detection.average_precision import as_results, average_precision
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.mask_rcnn import PAD_MULTIPLE, MaskRCNN, MaskRCNNConfig
from vmamba.tasks.detection.options import DetectionOptions
from vmamba.tasks.protocol import RGB, Job, Loader, Metric, check_model_options


class DetectionBatch(NamedTuple):
    """Images padded to one size, and what they are.

    Attributes:
        images: float32 (B, 3, H, W), zero where padded.
        sizes: Height and width of each image in it.
        targets: Boxes, labels and masks of each, for training.
        originals: Height and width of each file.
        ids: Of the annotation file.
        files: Names of the files.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]
    targets: tuple[dict[str, Tensor], ...]
    originals: tuple[tuple[int, int], ...]
    ids: tuple[int, ...]
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> DetectionBatch:
        images = self.images.to(device, non_blocking=True)
        targets = tuple(
            {name: t.to(device, non_blocking=True) for name, t in target.items()} for target in self.targets
        )
        return self._replace(images=images, targets=targets)


def collate(samples: Sequence[dict[str, Any]]) -> DetectionBatch:
    """Samples of any size → batch, padded below and on the right to a common multiple of 32."""
    images = [sample["image"].as_subclass(Tensor) for sample in samples]
    targets: list[dict[str, Tensor]] = [
        {name: sample[name].as_subclass(Tensor) for name in ("boxes", "labels", "masks") if name in sample}
        for sample in samples
    ]
    return DetectionBatch(
        pad_together(images),
        tuple((image.shape[1], image.shape[2]) for image in images),
        tuple(target for target in targets if target),
        tuple(sample["size"] for sample in samples),
        tuple(sample["id"] for sample in samples),
        tuple(sample["file"] for sample in samples),
    )


def pad_together(images: Sequence[Tensor]) -> Tensor:
    """Images (3, h, w) → (B, 3, H, W), sides multiples of 32, zeros below and on the right."""
    height, width = (-(-max(i.shape[axis] for i in images) // PAD_MULTIPLE) * PAD_MULTIPLE for axis in (1, 2))
    return torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])


class Detection:
    """See `vmamba.tasks.protocol.Task`."""

    name: ClassVar[str] = "detection"
    metric: ClassVar[Metric] = Metric("mask_ap")
    Options: ClassVar[type[Settings]] = DetectionOptions

    def __init__(self, job: Job, options: DetectionOptions) -> None:
        check_model_options(job)
        self.job, self.options = job, options

    def setup(self, *, training: bool = True) -> None:
        options = self.options
        if training:
            transform = detection_training(options.augmentation, options.image_size, options.max_size)
            self.train_data = self._open("train", training=True, transform=transform)
        transform = detection_evaluation(options.image_size, options.max_size)
        self.val_data = self._open("val", training=False, transform=transform)
        if training:
            self._check_categories()

    def _open(self, split: str, **options: Any) -> CocoInstances:
        job = self.job
        return CocoInstances(find_split(job.data, split), strict=job.strict, max_pixels=job.max_pixels, **options)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.val_data.classes

    def summary(self, *, verify: bool = False) -> DataSummary:
        parts = [self.train_data.summary("train", verify=verify), self.val_data.summary("val", verify=verify)]
        return DataSummary(self.name, self.job.data, parts)

    def _check_categories(self) -> None:
        train, val = (
            dict(zip(data.category_ids, data.classes, strict=True)) for data in (self.train_data, self.val_data)
        )
        if train != val:
            differing = sorted(set(train.items()) ^ set(val.items()))
            raise DataError(
                f"{self.job.data}: the training and the validation annotations differ in their categories, "
                f"{differing[0][0]} ({differing[0][1]}) first"
            )

    def build_model(self) -> nn.Module:
        job, options = self.job, self.options
        checkpoint = job_checkpoint(job)
        if checkpoint is not None and checkpoint.task != "classification":
            model = load_detector(checkpoint, job.model, backbone_options=RGB | job.model_options)
            if not options.keep_head:
                model.reset_classes(self.labels)
            elif len(model.config.classes) != len(self.labels):
                raise CheckpointError(
                    f"{job.checkpoint}: knows {len(model.config.classes)} classes, the data have {len(self.labels)}; "
                    "train fresh classes (keep_head: false), or give the data that it was trained on"
                )
            return model
        backbone = backbone_config(job, checkpoint)
        config = MaskRCNNConfig(
            backbone,
            self.labels,
            options.channels,
            options.box_channels,
            options.mask_channels,
            options.proposals,
            options.samples,
        )
        model = MaskRCNN(config)
        load_backbone(model.backbone, job, checkpoint)
        return model

    def train_loader(self) -> Loader:
        data = self.train_data
        group_ids = [int(p.height > p.width and self.options.group_by_aspect) for p in data.pictures]
        return AspectRatioGroupedLoader(data, collate, training=True, group_ids=group_ids, **self.job.loader_options)

    def val_loader(self) -> Loader:
        return IndexedLoader(self.val_data, collate, training=False, **self.job.loader_options)

    def loss(self, model: nn.Module, batch: DetectionBatch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = model(batch.images, batch.sizes, batch.targets)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def evaluate(
        self, model: nn.Module, batches: Iterable[DetectionBatch], output: Path | None = None
    ) -> dict[str, float]:
        results: list[dict[str, Any]] = []
        image_ids: list[int] = []
        for batch in batches:
            image_ids += batch.ids
            for i, detections in enumerate(model(batch.images, batch.sizes)):
                (height, width), original = batch.sizes[i], batch.originals[i]
                boxes, masks = detections.in_image(original, (height / original[0], width / original[1]))
                results += as_results(
                    batch.ids[i], boxes, detections.scores, detections.labels, masks, self.val_data.category_ids
                )
        parts = [(results, image_ids)]
        if dist.is_initialized():
            parts = [([], []) for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, (results, image_ids))
        together = [result for part, _ in parts for result in part]
        seen = [image_id for _, ids in parts for image_id in ids]
        return average_precision(self.val_data.file, together, seen, output if self.job.rank == 0 else None)

    def export(self, model: nn.Module, folder: Path, training: Mapping[str, Any]) -> list[Path]:
        preprocessing = Preprocessing(self.options.image_size, self.options.max_size, interpolation="bilinear")
        path = folder / "model.safetensors"
        weights = save_weights(model, path, preprocessing=preprocessing, training=training)
        return [weights, info_path(weights)]
