"""Small classification problems that are built in: images and classes as tensors.

`direction` and `pathfinder` cannot be solved without carrying information far across the image, `digits` can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vmamba.data.direction import direction
from vmamba.data.pathfinder import pathfinder
from vmamba.errors import MissingPackageError

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """Training and test images of a problem.

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


def direction_problem() -> Problem:
    """In which direction from the dark dot is the bright one? See `vmamba.data.direction`.

    Learnt on 48×48 pixels (12×12 tokens), tested there and, without further training, on twice the side and distance.
    """
    near, far = _tensors(direction(2000, seed=1)), _tensors(direction(1000, size=96, seed=2))
    return Problem(*_tensors(direction(4000, seed=0)), {"direction": near, "direction, twice as far": far})


def pathfinder_problem() -> Problem:
    """Are two dots the ends of one curve? 48×48 pixels, 12×12 tokens; see `vmamba.data.pathfinder`."""
    test = {"pathfinder": _tensors(pathfinder(2000, seed=1))}
    return Problem(*_tensors(pathfinder(8000, seed=0)), test, symmetric=True)


def digits_problem() -> Problem:
    """The 1797 handwritten digits of scikit-learn, 8×8 pixels enlarged to 32×32; a fifth is for testing.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingPackageError("scikit-learn", "demo") from None
    digits = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0, stratify=digits.target)
    grey = (digits.images * (255 / 16)).astype(np.uint8)
    images = F.interpolate(_normalised(grey), size=(32, 32), mode="bicubic", align_corners=False)
    labels = torch.from_numpy(digits.target)
    return Problem(images[train], labels[train], {"digits": (images[test], labels[test])})


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "direction": direction_problem,
    "pathfinder": pathfinder_problem,
    "digits": digits_problem,
}


def _tensors(drawn: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Examples:
    images, labels = drawn
    return _normalised(images), torch.from_numpy(labels)


def _normalised(grey: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, S, S) → float32 (n, 3, S, S), as models of photographs expect them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std
