"""What the drawn images show, read back from their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vmamba.data.direction import CLASSES, direction


def test_same_seed_same_images() -> None:
    images, labels = direction(20, seed=3)
    again, same = direction(20, seed=3)
    assert (images == again).all()
    assert (labels == same).all()
    assert (direction(20, seed=4)[0] != images).any()
    assert images.shape == (20, 48, 48)
    assert images.dtype == np.uint8
    assert set(direction(200)[1]) == set(range(len(CLASSES)))


@pytest.mark.parametrize("size", [32, 64])
def test_the_class_is_the_direction_from_dark_to_bright(size: int) -> None:
    images, labels = direction(80, size=size, noise=0.03, seed=size)
    for image, label in zip(images, labels, strict=True):
        centres = []
        for found in (image < 40, image > 215):
            _, count = ndimage.label(found, np.ones((3, 3)))
            assert count == 1
            centres.append(np.array(ndimage.center_of_mass(found)))
        down, right = centres[1] - centres[0]
        expected = ("right" if right > 0 else "left") if abs(right) > abs(down) else ("below" if down > 0 else "above")
        assert CLASSES[label] == expected
        assert max(abs(down), abs(right)) > 0.38 * size
