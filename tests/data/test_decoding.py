"""Decoding in processes: the same batches as without."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from vmamba.data.decoding import DecodedBatches, DecodedImages
from vmamba.data.sources import ImageRef, list_images
from vmamba.errors import DataError, ImageError


@pytest.fixture
def images(tmp_path: Path) -> list[ImageRef]:
    for i in range(11):
        Image.new("RGB", (5 + i, 4), (i, 0, 0)).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "03.png").write_bytes(b"broken")
    return list(list_images([tmp_path]))


def red(image: Image.Image) -> torch.Tensor:
    if image.width == 5:
        raise ZeroDivisionError("a bug")
    return torch.tensor(image.getpixel((0, 0))[0])  # type: ignore[index]


def killed(_: Image.Image) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(images: list[ImageRef], workers: int) -> None:
    batches = list(DecodedBatches(iter(images), red, torch.stack, batch_size=4, workers=workers))
    assert [len(batch.images) for batch in batches] == [2, 4, 3]
    assert torch.cat([batch.values for batch in batches]).tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert [ref for batch in batches for ref in batch.images] == [images[i] for i in (1, 2, 4, 5, 6, 7, 8, 9, 10)]
    (bug, error), (broken, reason) = batches[0].failures
    assert (bug, broken) == (images[0], images[3])
    assert isinstance(error, ZeroDivisionError)
    assert isinstance(reason, ImageError)


def test_images_keep_their_pixels(images: list[ImageRef]) -> None:
    failed: list[str] = []
    decoded = dict(DecodedImages(images, workers=1).decoded(lambda name, _: failed.append(name)))
    assert failed == [images[3].name]
    for ref, image in decoded.items():
        with Image.open(ref.path) as truth:
            assert image.tobytes() == truth.tobytes()
            assert image.size == truth.size


def test_images_are_listed_as_they_are_needed(images: list[ImageRef]) -> None:
    taken: list[ImageRef] = []

    def listing():  # type: ignore[no-untyped-def]
        for i in range(1000):
            taken.append(images[1]._replace(name=str(i)))
            yield taken[-1]

    batches = iter(DecodedBatches(listing(), red, torch.stack, batch_size=2, workers=2))
    next(batches)
    assert len(taken) <= 2 * 2 * 3


def test_a_process_that_is_killed_is_an_error_in_one_line(images: list[ImageRef]) -> None:
    with pytest.raises(DataError, match="one of 1 decoding processes was killed"):
        list(DecodedBatches(images, killed, torch.stack, batch_size=1, workers=1))
