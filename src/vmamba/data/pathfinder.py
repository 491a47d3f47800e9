"""Pathfinder: a task that no local view can solve, drawn on the fly. Are two dots the ends of one curve?

Every image holds two smooth curves of the same length that keep apart, and two dots on ends of curves. In half of the
images the dots mark both ends of one curve, in the other half one end of each. Locally both kinds look alike: two
dotted ends, two bare ends; only following a curve from a dot to its other end tells them apart.

Source: Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units", NeurIPS 2018
(the task; the drawing here is our own, and simpler: no dashes and no distractors but the second curve).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vmamba.errors import OptionError

Points = NDArray[np.float64]

#: Pixels between two points of a curve.
STEP = 2.0
#: Images are drawn this many times as large and scaled down.
_OVERSAMPLING = 4
#: Curves that are tried at once.
_TRIALS = 512


def pathfinder(
    count: int, size: int = 48, length: float = 0.8, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw images; the same for the same arguments.

    Args:
        count: How many.
        size: Height and width of the images in pixels, at least 48.
        length: Of each curve, as a multiple of `size`; up to about 1.2 there is room for two.
        seed: Of the random numbers.

    Returns:
        uint8 (count, size, size), white on black; int64 (count,), 1 where the dots are on one curve. Half are.

    Raises:
        OptionError: For images so small that a dot could touch the other curve.
    """
    if size < 48:
        raise OptionError(f"pathfinder needs images of at least 48 pixels, got {size}")
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    generator.shuffle(labels)
    pairs = _pairs(generator, size, length)
    return np.stack([_draw(next(pairs), bool(label), size, generator) for label in labels]), labels


def _pairs(generator: np.random.Generator, size: int, length: float) -> Iterator[Points]:
    """Pairs (2, T, 2) of curves that keep apart."""
    gap = size / 7
    while True:
        curves = _curves(generator, size, length)
        half = len(curves) // 2
        first, second = curves[:half], curves[half : 2 * half]
        distance = np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).min((1, 2), initial=size)
        yield from np.stack([first, second], axis=1)[distance > gap]


def _curves(generator: np.random.Generator, size: int, length: float) -> Points:
    """Curves (n, T, 2): smooth walks inside the image that do not come near themselves again."""
    steps, margin = round(length * size / STEP), size / 12
    # The curvature wanders, so that curves bend both ways.
    noise = np.pad(generator.normal(0, 0.45, (_TRIALS, steps + 8)).cumsum(1), ((0, 0), (1, 0)))
    turns = (noise[:, 8:] - noise[:, :-8])[:, :steps] / 8
    heading = generator.uniform(0, 2 * math.pi, (_TRIALS, 1)) + turns.cumsum(1)
    walk = STEP * np.stack([np.cos(heading), np.sin(heading)], axis=-1).cumsum(1)
    # Anywhere in the image where it has room.
    low, high = margin - walk.min(1), size - margin - walk.max(1)
    curves = (walk + generator.uniform(low, np.maximum(high, low))[:, None])[(high > low).all(1)]
    apart = np.abs(np.arange(steps)[:, None] - np.arange(steps)) * STEP > size / 4
    distance = np.linalg.norm(curves[:, :, None] - curves[:, None], axis=-1)
    return curves[distance[:, apart].min(1, initial=size) > size / 7]


def _draw(curves: Points, together: bool, size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    picture = Image.new("L", (size * _OVERSAMPLING,) * 2)
    pen = ImageDraw.Draw(picture)
    for curve in curves * _OVERSAMPLING:
        pen.line([(x, y) for x, y in curve], fill=255, width=round(1.3 * _OVERSAMPLING), joint="curve")
    one, other = generator.permutation(curves[:, [0, -1]])  # both ends of each curve
    dots = one if together else np.stack([generator.permutation(one)[0], generator.permutation(other)[0]])
    radius = 2.4 * _OVERSAMPLING
    for x, y in dots * _OVERSAMPLING:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))
