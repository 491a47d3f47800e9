"""Images decoded in processes of their own, in batches, while a model computes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # not in typeshed
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vmamba.data.loader import leave_signals_to_training
from vmamba.data.sources import ImageRef
from vmamba.errors import DataError, OptionError

#: Decoding processes by default.
WORKERS = min(2, os.cpu_count() or 1)


class Batch(NamedTuple):
    """Images that were decoded together.

    Attributes:
        images: Those that could be read.
        values: They, prepared and collated; None where there are none.
        failures: The others, with their errors.
    """

    images: list[ImageRef]
    values: Any
    failures: list[tuple[ImageRef, Exception]]


class DecodedBatches:
    """Batches of decoded images, in the order in which the images are listed; may be iterated once.

    The images are listed as they are needed, at most two batches a process ahead.

    Attributes:
        waited: Seconds that whoever iterates has waited for a batch.

    Args:
        images: The images.
        prepare: Image → sample.
        collate: Samples → what a batch holds, computed where they are prepared.
        batch_size: Images per batch; the last may have fewer.
        workers: Processes; 0 to decode in this one.
        max_pixels: See `vmamba.data.images.read_image`.

    Raises:
        OptionError: For a `batch_size` below 1.
    """

    def __init__(
        self,
        images: Iterable[ImageRef],
        prepare: Callable[[Image.Image], Any],
        collate: Callable[[list[Any]], Any],
        *,
        batch_size: int,
        workers: int = 0,
        max_pixels: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, got {batch_size}")
        self.waited = 0.0
        self._workers = workers
        self._loader: DataLoader[Any] = DataLoader(
            _Prepared(prepare, max_pixels),
            batch_sampler=_Batches(images, batch_size),
            collate_fn=_Collate(collate),
            num_workers=workers,
            worker_init_fn=leave_signals_to_training,
            pin_memory=torch.cuda.is_available(),
        )

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"one of {self._workers} decoding processes was killed, perhaps for want of memory; "
                    "go on with fewer --workers"
                ) from error
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class _Batches:
    """The batch sampler: lists images as the loader asks for them."""

    def __init__(self, images: Iterable[ImageRef], batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __iter__(self) -> Iterator[list[ImageRef]]:
        images = iter(self.images)
        while batch := list(islice(images, self.batch_size)):
            yield batch


class _Prepared(Dataset[tuple[ImageRef, Any]]):
    """Prepared samples, or the errors in their place."""

    def __init__(self, prepare: Callable[[Image.Image], Any], max_pixels: int | None) -> None:
        self.prepare, self.max_pixels = prepare, max_pixels

    def __getitem__(self, image: ImageRef) -> tuple[ImageRef, Any]:
        known = image._replace(content=None)
        try:
            return known, self.prepare(image.read(self.max_pixels))
        except Exception as error:
            if get_worker_info() is None:
                return known, error
            return known, ExceptionWithTraceback(error, error.__traceback__)


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[tuple[ImageRef, Any]]) -> Batch:
        wrong = [(image, value) for image, value in samples if isinstance(value, (Exception, ExceptionWithTraceback))]
        failed = {image for image, _ in wrong}
        good = [(image, value) for image, value in samples if image not in failed]
        values = self.collate([value for _, value in good]) if good else None
        return Batch([image for image, _ in good], values, wrong)


class DecodedImages:
    """Single images, RGB at their own size, decoded ahead; see `DecodedBatches`.

    Attributes:
        waited: Seconds of waiting for an image.
    """

    def __init__(self, images: Iterable[ImageRef], *, workers: int = 0, max_pixels: int | None = None) -> None:
        self._batches = DecodedBatches(images, _pixels, _single, batch_size=1, workers=workers, max_pixels=max_pixels)

    @property
    def waited(self) -> float:
        return self._batches.waited

    def decoded(self, on_error: Callable[[str, Exception], None]) -> Iterator[tuple[ImageRef, Image.Image]]:
        """The images that can be read; `on_error` is called with the others."""
        for batch in self._batches:
            for image, error in batch.failures:
                on_error(image.name, error)
            for image in batch.images:
                yield image, Image.fromarray(batch.values.numpy())


def _pixels(image: Image.Image) -> torch.Tensor:
    """RGB → uint8 (H, W, 3), which goes from process to process without a copy."""
    return torch.from_numpy(np.array(image))


def _single(samples: list[torch.Tensor]) -> torch.Tensor:
    (sample,) = samples
    return sample
