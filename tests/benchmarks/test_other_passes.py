"""What is counted beside the scans: in closed form for layers, and of which kinds in a released model."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from other_passes import Pass, bounds, other_passes, passes
from torch import nn


def test_bytes_and_operations_of_layers() -> None:
    layers = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU()).bfloat16()
    norm, linear, gelu = passes(layers, torch.empty(6, 8, dtype=torch.bfloat16))
    assert norm.kind == "norms"
    assert norm.bytes >= 2 * (2 * 6 * 8 + 2 * 8)  # mean and deviation of every token come with it
    assert linear == Pass("products", 2 * (6 * 8 + 16 + 8 * 16 + 6 * 16), 2 * 6 * 8 * 16)
    assert gelu == Pass("pointwise", 2 * (2 * 6 * 16), 0)


def test_the_slower_of_bytes_and_operations_bounds_a_pass() -> None:
    found = [Pass("products", 3_000_000_000, 1), Pass("products", 1, 8_000_000_000_000), Pass("norms", 0, 0)]
    assert bounds(found, 3.0, 1000.0) == {"products": pytest.approx(1 + 8), "norms": 0}


def test_of_a_released_model() -> None:
    """14 blocks: five linear layers, three norms and a convolution each; stem, downsampling and classifier."""
    found = other_passes("vmamba_tiny_s1l8", 64, 2)
    counts = Counter(each.kind for each in found)
    assert counts["products"] == 14 * 5 + 1
    assert counts["norms"] == 14 * 3 + 2 + 3 + 1
    assert counts["convolutions"] == 14 + 2 + 3
