"""Masks in COCO's forms, against pycocotools; forms that are broken."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch

from vmamba.data.masks import area, decode_mask, encode_mask, is_empty, polygon_fault, run_length_fault


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_every_kind_of_mask() -> None:
    mask = torch.zeros(7, 9, dtype=torch.uint8)
    mask[2:5, 3:8] = 1
    compressed = encode_mask(mask)
    plain = {"size": [7, 9], "counts": [int(n) for n in _runs(mask.numpy())]}
    polygon = [[3.0, 2.0, 8.0, 2.0, 8.0, 5.0, 3.0, 5.0]]
    for segmentation in (compressed, plain, polygon):
        assert torch.equal(decode_mask(segmentation, 7, 9), mask)
    assert json.loads(json.dumps(compressed)) == compressed
    assert (pycocotools.mask.decode({**compressed, "counts": compressed["counts"].encode()}) == mask.numpy()).all()


def _runs(mask: Any) -> list[int]:
    """Plain run lengths, zeros first, by columns."""
    flat = mask.flatten(order="F")
    runs: list[int] = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def test_area() -> None:
    mask = torch.zeros(7, 9, dtype=torch.uint8)
    mask[2:5, 3:8] = 1
    assert area(encode_mask(mask), 7, 9) == 15
    assert area([[3.0, 2.0, 8.0, 2.0, 8.0, 5.0, 3.0, 5.0]], 7, 9) == 15


def test_masks_without_a_pixel() -> None:
    """Polygons of every size, thin, twisted and across the border, against what they decode to."""
    generator = np.random.default_rng(0)
    found = 0
    for i in range(2000):
        points = generator.normal(0, 1, (generator.integers(3, 9), 2))
        if i % 2:  # around a circle, else twisted
            points = points[np.argsort(np.arctan2(points[:, 1], points[:, 0]))]
        polygon = generator.uniform(-5, [55, 45]) + points * 10 ** generator.uniform(-1.5, 1.2, 2)
        empty = not decode_mask([polygon.flatten()], 40, 50).any()
        assert is_empty([polygon.flatten()], 40, 50) == empty, polygon
        assert not is_empty([polygon.flatten(), np.array([5.0, 5, 9, 5, 9, 9])], 40, 50)
        found += empty
    assert 200 < found < 1800
    for runs, empty in (([2000], True), ([0, 1, 1999], False), ([3, 0, 1997], True)):
        plain = {"size": [40, 50], "counts": runs}
        assert is_empty(plain, 40, 50) == empty
        assert is_empty(encode_mask(decode_mask(plain, 40, 50)), 40, 50) == empty


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        ([1, 2, 3, 4, 5, 6], None),
        ([-8, -6, 17, 13, 5, 6], None),
        ([1, 2, 3, 4], r"has 4 numbers; a polygon needs three points, 6 numbers (a box [x, y, width, height]"),
        ([1, 2], "has 2 numbers; a polygon needs three points"),
        ([1, 2, 3, 4, 5, 6, 7], "has 7 numbers; a polygon is x1, y1, x2, y2 …"),
        ([1, 2, 1e9, 4, 5, 6], "reaches to x = 1e+09, far outside the image of 9×7"),
        ([1, 2, 3, -8, 5, 6], "reaches to y = -8, far outside"),
    ],
)
def test_polygons(polygon: list[float], reason: str | None) -> None:
    fault = polygon_fault(np.array(polygon, dtype=float), 7, 9)
    assert (fault is None) if reason is None else reason in str(fault)


def test_run_lengths_of_random_masks_are_right() -> None:
    """Compressed ones decode to as many pixels as the image has, for masks of every density."""
    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        height, width = (int(n) for n in torch.randint(1, 200, (2,), generator=generator))
        mask = torch.rand(height, width, generator=generator) < i / 59
        runs = encode_mask(mask)
        assert run_length_fault(runs["size"], runs["counts"], height, width) is None
        assert run_length_fault([height, width], _runs(mask.numpy().astype(np.uint8)), height, width) is None


def test_broken_run_lengths() -> None:
    mask = torch.zeros(40, 30, dtype=torch.uint8)
    mask[5:30, 3:20] = 1
    counts = encode_mask(mask)["counts"]
    assert "has the size [30, 40], its image [40, 30]; height comes first" in str(
        run_length_fault([30, 40], counts, 40, 30)
    )
    assert "has the size [40, 31], its image [40, 30]" in str(run_length_fault([40, 31], counts, 40, 30))
    for broken in (counts[:-1], counts[1:], counts + "1", "", "P" * 20, "é", "\0", counts.replace(counts[3], "z")):
        assert run_length_fault([40, 30], broken, 40, 30), broken
    for runs in ([40 * 30 + 1], [1, 2], [], [1300, -100], [10**18, 10**18]):
        assert run_length_fault([40, 30], runs, 40, 30), runs
