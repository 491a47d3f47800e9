"""What the drawn images show, read back from their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vmamba.data.pathfinder import pathfinder


def test_same_seed_same_images() -> None:
    images, labels = pathfinder(20, seed=3)
    again, same = pathfinder(20, seed=3)
    other, _ = pathfinder(20, seed=4)
    assert (images == again).all()
    assert (labels == same).all()
    assert (images != other).any()
    assert images.shape == (20, 48, 48)
    assert images.dtype == np.uint8
    assert labels.sum() == 10


@pytest.mark.parametrize("size", [48, 64])
def test_the_label_says_whether_the_dots_are_on_one_curve(size: int) -> None:
    """Curves are connected sets of bright pixels; a dot is where an opening with a disc leaves something."""
    images, labels = pathfinder(60, size=size, seed=size)
    disc = np.hypot(*np.mgrid[-2:3, -2:3]) < 2.3
    for image, label in zip(images, labels, strict=True):
        bright = image > 60
        curves, count = ndimage.label(bright, np.ones((3, 3)))
        assert count == 2
        dots, found = ndimage.label(ndimage.binary_opening(image > 150, disc[1:-1, 1:-1]))
        centres = ndimage.center_of_mass(dots > 0, dots, range(1, found + 1))
        assert found == 2, centres
        (a, b), (c, d) = np.round(centres).astype(int)
        assert (curves[a, b] == curves[c, d]) == bool(label)


def test_both_kinds_look_alike_locally() -> None:
    """Same amount of ink, dots as far apart on average as chance has it: no shortcut through simple statistics."""
    images, labels = pathfinder(600)
    ink = images.astype(float).sum((1, 2))
    together, apart = ink[labels == 1], ink[labels == 0]
    assert abs(together.mean() - apart.mean()) < 0.01 * ink.mean()


def test_too_small() -> None:
    with pytest.raises(ValueError, match="at least 48 pixels, got 32"):
        pathfinder(1, size=32)
