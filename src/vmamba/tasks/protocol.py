"""What the training engine asks of a task: a model, batches, a loss, a metric.

The engine (`vmamba.training`) knows nothing else about classification, detection or segmentation. Everything random is
a pure function of numbers that it hands out, so that a run can stop anywhere and continue bit for bit: a batch depends
on (seed, epoch, its number in the epoch), and before each step the engine seeds PyTorch, NumPy and Python from
(seed, step, rank), which covers whatever `Task.loss` draws on the training process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vmamba.checkpoints.reading import Weights
from vmamba.data.summary import DataSummary

B = TypeVar("B", bound="Batch")


class Batch(Protocol):
    """What a loader yields: any images and targets, stacked or not.

    Attributes:
        size: Images in it.
        files: Names of the images, as far as they are known; told when the loss becomes infinite.
    """

    @property
    def size(self) -> int: ...

    @property
    def files(self) -> Sequence[str]: ...

    def to(self: B, device: torch.device) -> B:
        """The same batch on a device."""
        ...


class Loader(Protocol):
    """The batches of one process; `vmamba.data.loader` has them for data sets with and without random access.

    Attributes:
        skipped: Images that could not be read so far and were left out, one line each: name and reason.
    """

    skipped: list[str]

    def __len__(self) -> int:
        """Batches per epoch, the same in every process where the batches are trained on."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on; the same whenever they are asked for."""
        ...


@dataclass(frozen=True)
class Metric:
    """The result that decides which checkpoint is best.

    Attributes:
        name: Its key in what `Task.evaluate` returns: ``"top1"``.
        larger_is_better: Whether it is to be raised.
    """

    name: str
    larger_is_better: bool = True


@dataclass(frozen=True)
class Job:
    """What a task is asked to do, by one process of a run.

    Attributes:
        data: Where the data lie; what it may be is the task's business.
        model: Name of the backbone, see `vmamba.list_models`; None for what the checkpoint is.
        model_options: Overrides of its configuration: ``{"drop_path_rate": 0.2}``.
        checkpoint: Weights to start from, or None.
        weights: Which of the checkpoint's weights, see `vmamba.checkpoints.loading.read_checkpoint`.
        pretrained: Start from the authors' ImageNet-1K weights of `model` instead.
        batch_size: Images per batch of this process.
        workers: Loader processes of this process; 0 to read in the process itself.
        seed: Of everything random.
        strict: Stop at an unreadable image instead of leaving it out.
        rank: Number of this process.
        world_size: Processes in the run.
    """

    data: str
    model: str | None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    weights: Weights = "auto"
    pretrained: bool = False
    batch_size: int = 1
    workers: int = 0
    seed: int = 0
    strict: bool = False
    rank: int = 0
    world_size: int = 1


class Task(Protocol):
    """One kind of problem. Constructed as ``TaskClass(job, options)``; a class is named in `vmamba.tasks.TASKS`.

    Attributes:
        name: As recipes write it.
        metric: The headline.
        options: What the task was constructed with; values left to it ("None: as the images are") are filled in by
            `train_loader`, and land in the run's ``recipe.yaml``.
        Options: A frozen dataclass of what only this task knows (augmentation, image size …), all fields with
            defaults; the section ``options`` of a recipe. Its ``__post_init__`` raises a one-line ValueError for
            impossible values. No name may be that of a field of the recipe.
    """

    name: ClassVar[str]
    metric: ClassVar[Metric]
    Options: ClassVar[type[Any]]
    options: Any

    def __init__(self, job: Job, options: Any) -> None: ...

    def summary(self, *, verify: bool = False) -> DataSummary:
        """Look at the data before the first step: names, annotations and labels of every split.

        One process of a run calls it and prints it; it may take a minute for a large data set.

        Args:
            verify: Read every image, too, and name those that cannot be read.

        Raises:
            DataError: If they cannot be trained on; the message says what is wrong where.
        """
        ...

    def build_model(self) -> nn.Module:
        """A fresh model with its starting weights, on the CPU.

        Parameters without weight decay are those of one dimension and those that its ``no_weight_decay()`` names;
        ``group_matcher()`` is asked for layer-wise learning rates and ``set_grad_checkpointing()`` for checkpointing.
        """
        ...

    def train_loader(self) -> Loader:
        """Shuffled, augmented batches; every process gets its own part of each epoch."""
        ...

    def val_loader(self) -> Loader:
        """Every validation image once over all processes, whose numbers of batches may differ."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars: ``"loss"``, the mean over the batch, is what is minimised; the others are logged.

        `model` is the one of `build_model` in training mode, perhaps wrapped: call it, nothing else. The engine has
        autocast on where the recipe says so.
        """
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Any], output: Path | None = None) -> dict[str, float]:
        """Results on validation batches, among them the headline metric; the same in every process.

        Called in every process at once with its own batches, on their device; what is counted is summed over the
        processes here. `model` is not wrapped, in evaluation mode, and without gradients.

        Args:
            model: The model.
            batches: What `val_loader` yields, moved to the model's device.
            output: Folder for what numbers cannot hold: confusion matrix, detections … (written by rank 0), or None.
        """
        ...

    def export(self, model: nn.Module, folder: Path) -> list[Path]:
        """Write the weights, and what else is needed to use them, as the commands read them; the files written."""
        ...
