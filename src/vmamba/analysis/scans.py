"""The diagnostic study of the scan patterns: trained alike on tasks that are built in, several seeds each.

All patterns have the same parameters and the same cost; only the routes differ. `direction` and `pathfinder` cannot be
solved without carrying information far across the image, `digits` can.

Source: Liu et al., "VMamba", NeurIPS 2024, section 5.3 (there on ImageNet).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from vmamba.data.direction import direction
from vmamba.data.pathfinder import pathfinder
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig

PATTERNS = ("unidirectional", "bidirectional", "cascade", "cross")
BATCH_SIZE = 64

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What to learn from and what to test on.

    Attributes:
        images: float32 (n, 3, S, S).
        labels: Their classes, int64 (n,).
        tests: Test images and their classes, by the name of the test.
        symmetric: Mirroring and transposing an image leaves its class as it is.
    """

    images: Tensor
    labels: Tensor
    tests: Mapping[str, Examples]
    symmetric: bool = False

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


@dataclass(frozen=True)
class Outcome:
    """One model trained from scratch: the share of the images of a test that it gets right."""

    test: str
    scan: str
    seed: int
    accuracy: float


def direction_task() -> Task:
    """In which direction from the dark dot is the bright one? See `vmamba.data.direction`.

    Learnt on 48×48 pixels (12×12 tokens), tested there and, without further training, on twice the side and distance.
    """
    near, far = _tensors(direction(2000, seed=1)), _tensors(direction(1000, size=96, seed=2))
    return Task(*_tensors(direction(4000, seed=0)), {"direction": near, "direction, twice as far": far})


def pathfinder_task() -> Task:
    """Are two dots the ends of one curve? 48×48 pixels, 12×12 tokens; see `vmamba.data.pathfinder`."""
    test = {"pathfinder": _tensors(pathfinder(2000, seed=1))}
    return Task(*_tensors(pathfinder(8000, seed=0)), test, symmetric=True)


def digits_task() -> Task:
    """The 1797 handwritten digits of scikit-learn, 8×8 pixels enlarged to 32×32; a fifth is for testing.

    Raises:
        ValueError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise ValueError("the digits need scikit-learn: pip install 'vmamba[demo]'") from None
    digits = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0, stratify=digits.target)
    grey = (digits.images * (255 / 16)).astype(np.uint8)
    images = F.interpolate(_normalised(grey), size=(32, 32), mode="bicubic", align_corners=False)
    labels = torch.from_numpy(digits.target)
    return Task(images[train], labels[train], {"digits": (images[test], labels[test])})


TASKS: dict[str, Callable[[], Task]] = {
    "direction": direction_task,
    "pathfinder": pathfinder_task,
    "digits": digits_task,
}


def small_config(scan: str, classes: int) -> VMambaConfig:
    """The architecture of the study: two stages, 0.2 M parameters."""
    return VMambaConfig(num_classes=classes, dims=(32, 64), depths=(2, 2), scan=scan)


def untrained(scan: str, task: Task, seed: int) -> VMamba:
    """A model of the study before training; the same weights for every pattern."""
    torch.manual_seed(seed)
    return VMamba(small_config(scan, task.classes))


def train(model: nn.Module, task: Task, *, steps: int, seed: int, lr: float = 4e-3) -> Iterator[float]:
    """Train in place with AdamW, one-cycle; yields the loss of every step.

    The seed decides the order of the images and how they are turned: models trained with the same one see the same.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(task.images), (BATCH_SIZE,), generator=generator)
        images = task.images[chosen]
        if task.symmetric:
            images = _turned(images, generator)
        loss = F.cross_entropy(model(images), task.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, test: Examples) -> float:
    """Share of the images (n, 3, S, S) of a test that a model gets right."""
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
        figures = {"mean": statistics.mean(values), "deviation": spread, "least": min(values), "most": max(values)}
        rows.append({"test": test, "scan": scan, "seeds": len(values)} | {k: round(v, 2) for k, v in figures.items()})
    return rows


def _turned(images: Tensor, generator: torch.Generator) -> Tensor:
    """The whole batch mirrored or transposed, or not."""
    for dims in ((2,), (3,)):
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(dims)
    return images.transpose(2, 3).contiguous() if torch.rand((), generator=generator) < 0.5 else images


def _tensors(drawn: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Examples:
    images, labels = drawn
    return _normalised(images), torch.from_numpy(labels)


def _normalised(grey: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, S, S) → float32 (n, 3, S, S), as models of photographs expect them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std
