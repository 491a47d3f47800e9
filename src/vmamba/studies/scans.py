"""The diagnostic study of the scan patterns: trained alike on built-in problems, several seeds each.

All patterns have the same parameters and the same cost; only the routes differ.

Source: Liu et al., "VMamba", NeurIPS 2024, section 5.3 (there on ImageNet).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.checkpoints.info import info_path
from vmamba.checkpoints.saving import save_weights
from vmamba.data.summary import DataSummary, SplitSummary
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.progress import quiet
from vmamba.settings import Settings
from vmamba.studies.problems import Examples, Problem
from vmamba.tasks.classification.task import ImageBatch
from vmamba.tasks.protocol import Metric
from vmamba.training.distributed import Processes
from vmamba.training.loop import train
from vmamba.training.recipe import Recipe
from vmamba.zoo import model_from_checkpoint

PATTERNS = ("unidirectional", "bidirectional", "cascade", "cross")
BATCH_SIZE = 64


@dataclass(frozen=True)
class Outcome:
    """One model trained from scratch: the fraction of the images of a test that it gets right."""

    test: str
    scan: str
    seed: int
    accuracy: float


class ScanOptions(Settings):
    """Settings of a run of the study, besides its recipe.

    Attributes:
        problem: Its name.
        scan: Pattern of the model.
        steps: Optimiser steps.
    """

    problem: str
    scan: str
    steps: int


def train_pattern(
    problem: Problem,
    options: ScanOptions,
    seed: int,
    output: Path,
    processes: Processes | None = None,
    lr: float = 4e-3,
) -> VMamba:
    """Train a model of the study; one that was stopped goes on.

    Args:
        problem: What is learnt.
        options: Names and length of the run.
        seed: Of the weights, and of what is seen in which order: the same for every pattern.
        output: Folder of the run.
        processes: By default this one, on the CPU.
        lr: Peak learning rate.
    """
    recipe = Recipe(
        task="scans", options=options, epochs=1, batch_size=BATCH_SIZE, seed=seed, workers=0, lr=lr, warmup_lr=lr / 25,
        min_lr=0.0, warmup_epochs=0.1, clip_grad=1.0, log_every=max(options.steps // 50, 1), keep=1,
    )  # fmt: skip
    with quiet():
        task = ScanTask(problem, options, seed)
        train(recipe, output, processes or Processes(torch.device("cpu")), resume="auto", task=task)
    return model_from_checkpoint(output / "weights" / "model.safetensors").eval()


@torch.inference_mode()
def accuracy(model: nn.Module, test: Examples) -> float:
    """Fraction of the images (n, 3, S, S) of a test that a model gets right."""
    model.eval()
    images, labels = test
    guesses = torch.cat([model(some).argmax(1) for some in images.split(250)])
    return float((guesses == labels).double().mean())


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Mean, standard deviation, smallest and largest accuracy over the seeds, per test and scan, in per cent."""
    rows: list[dict[str, object]] = []
    tests, scans = (dict.fromkeys(names) for names in zip(*((o.test, o.scan) for o in outcomes), strict=True))
    for test, scan in itertools.product(tests, scans):
        values = [100 * o.accuracy for o in outcomes if (o.test, o.scan) == (test, scan)]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        figures = {"mean": statistics.mean(values), "deviation": spread, "min": min(values), "max": max(values)}
        rows.append({"test": test, "scan": scan, "seeds": len(values)} | {k: round(v, 2) for k, v in figures.items()})
    return rows


class ScanTask:
    """See `vmamba.tasks.protocol.Task`. An epoch is all the steps of the study.

    Args:
        problem: Images and classes.
        options: Of the run.
        seed: Of the order of the images and how they are turned.
    """

    name: ClassVar[str] = "scans"
    metric: ClassVar[Metric] = Metric("accuracy")
    Options: ClassVar[type[Settings]] = ScanOptions

    def __init__(self, problem: Problem, options: ScanOptions, seed: int) -> None:
        self.problem, self.options, self.seed = problem, options, seed

    def setup(self, *, training: bool = True) -> None:
        """Nothing is left to look for."""

    def summary(self, *, verify: bool = False) -> DataSummary:
        parts = [SplitSummary("train", "built in", len(self.problem.labels))]
        parts += [SplitSummary(name, "built in", len(labels)) for name, (_, labels) in self.problem.tests.items()]
        return DataSummary(self.name, self.options.problem, parts)

    def build_model(self) -> VMamba:
        """The architecture of the study: two stages, 0.2 M parameters."""
        config = VMambaConfig(num_classes=self.problem.classes, dims=(32, 64), depths=(2, 2), scan=self.options.scan)
        return VMamba(config)

    def train_loader(self) -> Draws:
        return Draws(self.problem, self.options.steps, self.seed)

    def val_loader(self) -> InOrder:
        return InOrder(next(iter(self.problem.tests.values())))

    def loss(self, model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(model(batch.images), batch.labels)}

    def evaluate(self, model: nn.Module, batches: Iterable[ImageBatch], output: Path | None = None) -> dict[str, float]:
        right = [model(batch.images).argmax(1) == batch.labels for batch in batches]
        return {"accuracy": 100 * float(torch.cat(right).double().mean())}

    def export(self, model: nn.Module, folder: Path, training: Mapping[str, Any]) -> list[Path]:
        weights = save_weights(model, folder / "model.safetensors", training=training)
        return [weights, info_path(weights)]


class Draws:
    """Random batches with replacement, each a function of (seed, number); see `vmamba.tasks.protocol.Loader`."""

    def __init__(self, problem: Problem, steps: int, seed: int) -> None:
        self.problem, self.steps, self.seed = problem, steps, seed
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        for number in range(start, self.steps):
            draw = np.random.default_rng([self.seed, number])
            chosen = torch.from_numpy(draw.integers(len(self.problem.labels), size=BATCH_SIZE))
            images = self.problem.images[chosen]
            if self.problem.symmetric:
                images = _turned(images, draw)
            yield ImageBatch(images, self.problem.labels[chosen], ("",) * BATCH_SIZE)


class InOrder:
    """The images of a test; see `vmamba.tasks.protocol.Loader`."""

    def __init__(self, test: Examples) -> None:
        self.test = test
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return math.ceil(len(self.test[1]) / 250)

    def batches(self, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        for images, labels in zip(*(part.split(250) for part in self.test), strict=True):
            yield ImageBatch(images, labels, ("",) * len(labels))


def _turned(images: Tensor, draw: np.random.Generator) -> Tensor:
    """The whole batch mirrored or transposed, or not."""
    upward, leftward, transposed = draw.random(3) < 0.5
    images = images.flip(2) if upward else images
    images = images.flip(3) if leftward else images
    return images.transpose(2, 3).contiguous() if transposed else images
