"""The simulated pipeline, where a closed form says how fast it is."""

from __future__ import annotations

import pytest
from pipeline import simulate

IMAGES, BATCH = 64_000, 64


@pytest.mark.parametrize(
    ("decode", "model", "workers", "fetch", "rate"),
    [
        (1e-3, 1e-2, 4, 0.0, 100),  # the model binds
        (1e-2, 1e-3, 4, 0.0, 400),  # four processes that decode
        (1e-3, 1e-3, 4, 5e-3, 200),  # the link
        (1e-2, 1e-3, 1, 1e-2, 50),  # one process that fetches, then decodes
    ],
)
def test_the_narrowest_place_binds(decode: float, model: float, workers: int, fetch: float, rate: float) -> None:
    speed = simulate(IMAGES, BATCH, decode=decode, model=model, workers=workers, fetch=fetch)
    assert speed == pytest.approx(rate, rel=0.02)


def test_the_start_counts() -> None:
    """One batch: fetched, decoded, computed one after the other."""
    assert simulate(64, 64, decode=1e-3, model=2e-3, workers=8, fetch=3e-3) == pytest.approx(1 / 6e-3)
