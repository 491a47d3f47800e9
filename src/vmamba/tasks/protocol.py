"""Interface between the training engine and a task: a model, batches, a loss, a metric.

The engine (`vmamba.training`) knows nothing else about classification, detection or segmentation. Everything random is
a pure function of numbers that it hands out, so that a run can stop anywhere and continue bit for bit: a batch depends
on (seed, epoch, its number in the epoch), and before each step the engine seeds PyTorch, NumPy and Python from
(seed, step, rank), which covers whatever `Task.loss` draws on the training process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from vmamba.checkpoints.reading import Weights
from vmamba.data.summary import DataSummary
from vmamba.errors import OptionError
from vmamba.model.config import VMambaConfig
from vmamba.settings import Settings, Text
from vmamba.zoo import architecture_of

B = TypeVar("B", bound="Batch")

#: Options of every model that is trained or evaluated: images are read as RGB.
RGB = {"in_chans": 3}


class Batch(Protocol):
    """Batch of a loader: any images and targets, stacked or not.

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
        drawn: Further results that are drawn, where they are there.
    """

    name: str
    larger_is_better: bool = True
    drawn: tuple[str, ...] = ()


class TaskRecipe(Settings):
    """The part of a recipe that a task reads; `vmamba.training.recipe.Recipe` adds how to train.

    Attributes:
        task: What is learnt, see `vmamba.tasks.TASKS`.
        model: Name of the backbone, see ``vmamba models``; None for what the checkpoint is.
        model_options: Overrides of its configuration: ``{drop_path_rate: 0.2}``.
        checkpoint: Weights to start from.
        weights: Which of the checkpoint's weights: ``"model"``, ``"model_ema"``, or ``"auto"``.
        pretrained: Start from the authors' ImageNet-1K weights of the model instead.
        workers: Loader processes per training process; 0 to read in the process itself.
        seed: Of everything random.
        strict: Stop at an unreadable image instead of leaving it out.
        max_pixels: Read images of up to so many pixels; None for Pillow's limit, about 179 million.
    """

    task: str = "classification"
    model: str | None = None
    model_options: dict[str, JsonValue] = Field(default_factory=dict)
    checkpoint: Text | None = None
    weights: Weights = "auto"
    pretrained: bool = False
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    strict: bool = False
    max_pixels: Annotated[int, Field(ge=1, le=2**53)] | None = None


class Job(TaskRecipe):
    """Settings of a task in one process of a run.

    Attributes:
        data: Where the data lie; what it may be is the task's business.
        batch_size: Images per batch of this process.
        rank: Number of this process.
        world_size: Processes in the run.
    """

    data: Text
    batch_size: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def loader_options(self) -> dict[str, Any]:
        """Arguments common to all loaders."""
        names = ("batch_size", "seed", "rank", "world_size", "workers", "strict")
        return {name: getattr(self, name) for name in names}


class Task(Protocol):
    """One kind of problem. Constructed as ``TaskClass(job, options)``; a class is named in `vmamba.tasks.TASKS`.

    Attributes:
        name: As recipes write it.
        metric: The headline.
        options: Those that it was constructed with, completed by `setup`.
        Options: Settings that only this task knows (augmentation, image size …), all with defaults; the section
            ``options`` of a recipe. No name may be that of a field of the recipe.
    """

    name: ClassVar[str]
    metric: ClassVar[Metric]
    Options: ClassVar[type[Settings]]
    options: Any

    def __init__(self, job: Job, options: Any) -> None: ...

    def setup(self, *, training: bool = True) -> None:
        """Look for the data, and complete the options that depend on them or on the checkpoint; called once, first.

        Args:
            training: Look for training data, too; without, for evaluation alone.

        Raises:
            DataError: If there are no such data.
            OptionError: If the job's and the task's options do not go together.
        """
        ...

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

    def export(self, model: nn.Module, folder: Path, training: Mapping[str, Any]) -> list[Path]:
        """Write the weights and all that is needed to use them, as the commands read them; the files written.

        Args:
            model: One of `build_model`, whole.
            folder: Where to.
            training: Summary of the run, to be written beside the weights.
        """
        ...


def check_model_options(job: Job) -> None:
    """Refuse what the model cannot be, before any data are looked at; the checkpoint is not opened for it.

    Raises:
        OptionError: For an unknown model or option, an impossible value, or channels other than those of images.
    """
    config = VMambaConfig() if job.model is None else architecture_of(job.model)
    in_chans = config.override(RGB | job.model_options).in_chans
    if in_chans != RGB["in_chans"]:
        raise OptionError(
            f"model_options: in_chans is {in_chans}, but images are read as RGB, grey ones too; leave it out: models "
            "take 3 channels, and weights for grey images are adapted"
        )
