"""Direction from a dark dot to a bright one: a task about two distant things, drawn on the fly.

Every image holds a dark and a bright dot, far apart, in noise. The class is the direction from the dark to the bright
one: right, below, left or above, by the longer of the two distances. The place of one dot alone only hints at the
class: what is at one place has to be brought together with what is at the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = ("right", "below", "left", "above")

_RADIUS = 3.0


def direction(
    count: int, size: int = 48, distance: float = 0.4, noise: float = 0.1, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images; the same for the same arguments.

    Args:
        count: How many.
        size: Height and width of the images in pixels.
        distance: Smallest distance of the dots along the deciding axis, as a multiple of `size`.
        noise: Standard deviation of the noise, as a multiple of white.
        seed: Of the random numbers.

    Returns:
        uint8 (count, size, size); int64 (count,), indices of `CLASSES`.
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(CLASSES), count)
    margin = _RADIUS + 2
    far = generator.uniform(distance * size, size - 2 * margin, count)
    aside = generator.uniform(-0.6, 0.6, count) * far
    # From the dark to the bright dot as (right, down), then both moved to where there is room.
    turn = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])[labels]
    offset = turn * far[:, None] + turn[:, ::-1] * aside[:, None]
    low, high = margin - np.minimum(offset, 0), size - margin - np.maximum(offset, 0)
    dark = generator.uniform(low, high)

    y, x = np.mgrid[:size, :size] + 0.5

    def dots(centres: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(_RADIUS + 0.5 - np.hypot(x - centres[:, :1, None], y - centres[:, 1:, None]), 0, 1)

    image = 0.5 + 0.5 * (dots(dark + offset) - dots(dark)) + generator.normal(0, noise, (count, size, size))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), labels
