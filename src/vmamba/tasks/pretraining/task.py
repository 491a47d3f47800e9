"""Pre-training without labels as a task of the training engine: what all methods have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.distributed as dist
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from vmamba.checkpoints.info import ModelInfo, Preprocessing, info_path
from vmamba.checkpoints.loading import adapted
from vmamba.checkpoints.recognition import Checkpoint, open_checkpoint
from vmamba.checkpoints.saving import save_weights
from vmamba.data.image_dataset import ImageDataset, Sample, median_size
from vmamba.data.loader import IndexedLoader
from vmamba.data.seeding import seeded
from vmamba.data.shards import ShardLoader
from vmamba.data.summary import DataSummary
from vmamba.data.views import RandomView, RandomViews
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba, nested_groups
from vmamba.settings import Settings
from vmamba.tasks.pretraining.data import UnlabelledData
from vmamba.tasks.pretraining.monitor import FeatureMonitor
from vmamba.tasks.pretraining.options import PretrainingOptions
from vmamba.tasks.protocol import RGB, Job, Loader, Metric, check_model_options
from vmamba.zoo import create_model, model_from_checkpoint

#: Height and width of the input where neither images nor weights say otherwise.
DEFAULT_SIZE = 224


class ViewBatch(NamedTuple):
    """Views of images.

    Attributes:
        views: One stack a kind, (V, N, 3, S, S) float32.
        boxes: Where they lie, (V, N, 4) a kind, on the CPU; see `vmamba.data.views.View`.
        images: As a model sees them in use, (N, 3, S, S); without elements in training.
        labels: Their classes (N,), `vmamba.data.image_tree.UNLABELLED` where there is none.
        files: Names.
    """

    views: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    images: Tensor
    labels: Tensor
    files: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.files)

    def to(self, device: torch.device) -> ViewBatch:
        views = tuple(view.to(device, non_blocking=True) for view in self.views)
        return self._replace(views=views, images=self.images.to(device, non_blocking=True))


def collate(samples: Sequence[Sample]) -> ViewBatch:
    """Samples whose pixels are `vmamba.data.views.Views` → batch."""
    kinds, boxes = (
        tuple(torch.stack(parts, dim=1) for parts in zip(*stacks, strict=True))
        for stacks in ([sample.pixels.kinds for sample in samples], [sample.pixels.boxes for sample in samples])
    )
    return ViewBatch(
        kinds,
        boxes,
        torch.stack([sample.pixels.image for sample in samples]),
        torch.tensor([sample.label for sample in samples]),
        tuple(sample.name for sample in samples),
    )


class Pretrainer(nn.Module):
    """A backbone with the layers that only pre-training needs.

    Attributes:
        backbone: What is kept afterwards.
    """

    def __init__(self, backbone: VMamba) -> None:
        super().__init__()
        self.backbone = backbone

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (N, C) of images (N, 3, H, W)."""
        return self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)

    def no_weight_decay(self) -> set[str]:
        """Those of the backbone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's groups for layer-wise learning rates; other layers come last."""
        return nested_groups(self.backbone, "backbone", coarse)


class Pretraining:
    """Base of the methods; see `vmamba.tasks.protocol.Task`."""

    name: ClassVar[str]
    metric: ClassVar[Metric] = Metric("loss", larger_is_better=False, drawn=("effective_rank", "knn"))
    Options: ClassVar[type[Settings]]

    def __init__(self, job: Job, options: Any) -> None:
        check_model_options(job)
        self.job, self.options = job, cast(PretrainingOptions, options)
        self.preprocessing = Preprocessing()
        self.checkpoint: Checkpoint | None = None

    # ----------------------------------------------------------------------------------------------------------------
    # For methods to define

    @property
    def overlapping(self) -> bool:
        """True if the views of an image must show a part of it in common."""
        return False

    def views(self) -> list[tuple[int, RandomView]]:
        """Number of views of each kind, and what draws one."""
        raise NotImplementedError

    def build_pretrainer(self, backbone: VMamba) -> Pretrainer:
        """The model to train around a backbone."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: ViewBatch, *, distributed: bool | None = None) -> dict[str, Tensor]:
        """See `vmamba.tasks.protocol.Task.loss`.

        Args:
            model: The pretrainer, perhaps wrapped.
            batch: Of this process.
            distributed: Take the batches of all processes together, where the loss is not a mean over images; None
                to do so if there are several.
        """
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------------

    def setup(self, *, training: bool = True) -> None:
        job, options = self.job, self.options
        known: Preprocessing | None = None
        if job.checkpoint is not None:
            self.checkpoint = open_checkpoint(job.checkpoint, job.weights)
            info = adapted(self.checkpoint, in_chans=RGB["in_chans"]).info
            known = info.preprocessing if info is not None else None
        size = options.image_size or (known.image_size if known is not None else None) or self._default_size()
        self.options = options.replace(image_size=size)
        self.preprocessing = Preprocessing(size, interpolation=options.interpolation)
        if known is not None:
            self.preprocessing = dataclasses.replace(self.preprocessing, mean=known.mean, std=known.std)

    def _default_size(self) -> int:
        if self.options.format == "shards" or self.job.checkpoint or self.job.pretrained:
            return DEFAULT_SIZE
        size = median_size(self.data.train, max_pixels=self.job.max_pixels)
        return min(DEFAULT_SIZE, max(32, -(-size // 32) * 32))

    @cached_property
    def data(self) -> UnlabelledData:
        """The splits."""
        job, names = self.job, ("format", "train_split", "val_split", "holdout")
        options = {name: getattr(self.options, name) for name in names}
        return UnlabelledData(job.data, seed=job.seed, max_pixels=job.max_pixels, **options)

    def summary(self, *, verify: bool = False) -> DataSummary:
        return self.data.summary(verify=verify)

    def build_model(self) -> nn.Module:
        job = self.job
        options: dict[str, Any] = RGB | job.model_options | {"num_classes": 0}
        if self.checkpoint is not None:
            return self.build_pretrainer(model_from_checkpoint(self.checkpoint, job.model, **options))
        if job.model is None:
            raise OptionError("which model? give --model NAME; 'vmamba models' lists them")
        return self.build_pretrainer(cast(VMamba, create_model(job.model, pretrained=job.pretrained, **options)))

    def train_loader(self) -> Loader:
        return self._loader("train", RandomViews(self.views(), overlapping=self.overlapping))

    def val_loader(self) -> Loader:
        settings = ModelInfo(preprocessing=self.preprocessing).pretrained_cfg
        evaluation = create_transform(**resolve_data_config({}, pretrained_cfg=settings))
        return self._loader("val", RandomViews(self.views(), evaluation, overlapping=self.overlapping))

    def _loader(self, split: str, transform: RandomViews) -> Loader:
        job, data, training = self.job, self.data, split == "train"
        if self.options.format == "shards":

            def sample(image: Image.Image, label: int, name: str) -> Sample:
                return Sample(transform(image), label, name)

            shards, options = data.shards(split), {"max_pixels": job.max_pixels, **job.loader_options}
            return ShardLoader(shards, sample, collate, training=training, labelled=False, **options)
        files, indices = (data.train, data.train_indices) if training else (data.val, data.val_indices)
        images = ImageDataset(files, transform, indices, max_pixels=job.max_pixels)
        return IndexedLoader(images, collate, training=training, **job.loader_options)

    def evaluate(self, model: nn.Module, batches: Iterable[ViewBatch], output: Path | None = None) -> dict[str, float]:
        pretrainer, monitor = cast(Pretrainer, model), FeatureMonitor()
        sums: dict[str, float] = {}
        images = 0
        for i, batch in enumerate(batches):
            with seeded(self.job.rank, i):  # the same draws at every validation
                losses = self.loss(model, batch, distributed=False)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value) * batch.size
            images += batch.size
            monitor.add(pretrainer.features(batch.images), batch.labels)
        total = torch.tensor([images, *sums.values()], dtype=torch.float64)
        if dist.is_initialized():
            total = total.to(next(model.parameters()).device)
            dist.all_reduce(total)
        count, *values = total.tolist()
        means = {name: value / count for name, value in zip(sums, values, strict=True)}
        return {**means, **monitor.results(), "images": count}

    def export(self, model: nn.Module, folder: Path, training: Mapping[str, Any]) -> list[Path]:
        backbone = cast(Pretrainer, model).backbone
        path = folder / "model.safetensors"
        weights = save_weights(backbone, path, preprocessing=self.preprocessing, training=training)
        return [weights, info_path(weights)]
