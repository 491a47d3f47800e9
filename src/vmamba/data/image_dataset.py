"""Images with a class as a data set with random access, and how to split one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vmamba.data.image_folder import LabelledFiles
from vmamba.data.images import read_image
from vmamba.errors import DataError, ImageError


class Sample(NamedTuple):
    """One image, as a transform has made it, with its class and the name of its file."""

    pixels: Any
    label: int
    name: str


class ImageDataset:
    """A data set with random access; ``images[i]`` is a `Sample`.

    Args:
        files: The images.
        transform: PIL image (RGB) → pixels, or several views of it.
        indices: Which of the files, all by default.
        max_pixels: See `vmamba.data.images.read_image`.
    """

    def __init__(
        self,
        files: LabelledFiles,
        transform: Callable[[Image.Image], Any],
        indices: Sequence[int] | None = None,
        *,
        max_pixels: int | None = None,
    ) -> None:
        self.files, self.transform, self.max_pixels = files, transform, max_pixels
        self.indices: Sequence[int] = range(len(files.labels)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        i = self.indices[index]
        pixels = self.transform(read_file(self.files, i, self.max_pixels))
        return Sample(pixels, int(self.files.labels[i]), self.files.name(i))


def read_file(files: LabelledFiles, index: int, max_pixels: int | None = None) -> Image.Image:
    """One of the images, as it is in its file, of at most `max_pixels`.

    Raises:
        ImageError: If it cannot be read.
    """
    name = files.name(index)
    try:
        content = files.open(index)
    except OSError as error:
        raise ImageError(f"cannot read the image {name}: {(error.strerror or str(error)).lower()}") from None
    with content:
        return read_image(name, content, max_pixels=max_pixels)


def hold_out(labels: Sequence[int] | np.ndarray, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into (training, validation), the same fraction of every class.

    Of every class at least one image is held out and at least one stays; a class of one image stays in training.

    Args:
        labels: Class of each image.
        fraction: Of the images to hold out, between 0 and 1.
        seed: Of the choice.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held += members[: min(max(1, round(fraction * len(members))), len(members) - 1)].tolist()
    kept = set(held)
    return [i for i in range(len(labels)) if i not in kept], sorted(held)


def median_size(files: LabelledFiles, sample: int = 64, max_pixels: int | None = None) -> int:
    """Median over some images, evenly spread, of the geometric mean of their height and width, in pixels.

    Raises:
        DataError: If none of them can be read.
    """
    sizes: list[float] = []
    problem: ImageError | None = None
    count = len(files.labels)
    for i in np.linspace(0, count - 1, min(sample, count)).astype(int):
        try:
            width, height = read_file(files, int(i), max_pixels).size
        except ImageError as error:
            problem = problem or error
            continue
        sizes.append(math.sqrt(width * height))
    if not sizes:
        raise DataError(f"{files.path}: none of the images can be used: {problem}")
    return round(float(np.median(sizes)))
