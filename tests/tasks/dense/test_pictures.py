"""Pictures of segmentations: the image, the same tinted, a legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vmamba.tasks.dense.pictures import colour, draw_segmentation

PLAIN = (200, 100, 50)


def _colours(path: Path) -> dict[tuple[int, int, int], int]:
    with Image.open(path) as picture:
        return {rgb: count for count, rgb in picture.convert("RGB").getcolors(1 << 24)}


def _tint(index: int) -> tuple[int, ...]:
    return tuple(np.floor(0.4 * np.array(PLAIN) + 0.6 * 255 * np.array(colour(index))).astype(int).tolist())


def _close(colours: dict[tuple[int, int, int], int], wanted: tuple[int, ...]) -> int:
    """Pixels of a colour, give or take a level."""
    return sum(
        count for rgb, count in colours.items() if max(abs(a - b) for a, b in zip(rgb, wanted, strict=True)) <= 1
    )


def test_the_background_stays_as_it_is(tmp_path: Path) -> None:
    labels = torch.zeros(40, 60, dtype=torch.uint8)
    labels[:10, :20] = 1
    draw_segmentation(tmp_path / "a.png", Image.new("RGB", (60, 40), PLAIN), labels, ["ground", "thing"])
    colours = _colours(tmp_path / "a.png")
    thing, plain = _close(colours, _tint(1)), _close(colours, PLAIN)
    assert thing
    assert abs(plain / thing - (12 + 11)) < 1  # the image beside it, and eleven twelfths of the tinted one
    assert not _close(colours, _tint(0))


def test_classes_that_cover_less_are_tinted(tmp_path: Path) -> None:
    labels = torch.arange(4, dtype=torch.uint8).repeat_interleave(10)[:, None].expand(40, 60).contiguous()
    draw_segmentation(tmp_path / "a.png", Image.new("RGB", (60, 40), PLAIN), labels, list("abcd"))
    colours = _colours(tmp_path / "a.png")
    assert all(_close(colours, _tint(index)) for index in range(4))
