"""Layers fed another layout name it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from vmamba.layers import SS2D, Block, ConvDownsample, Mlp, PatchExpand, PatchMerging

LAYERS = {
    "SS2D": lambda: SS2D(8),
    "Block": lambda: Block(8),
    "Mlp": lambda: Mlp(8, 16),
    "ConvDownsample": lambda: ConvDownsample(8, 16),
    "PatchMerging": lambda: PatchMerging(8),
    "PatchExpand": lambda: PatchExpand(8),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((2, 8, 6, 4), ", which looks like (B, 8, H, W): permute(0, 2, 3, 1) first"),
        ((2, 24, 8), ", which looks like (B, L, 8): unflatten(1, (H, W)) first"),
        ((2, 6, 4, 7), ""),
    ],
)
def test_other_layouts_are_named(name: str, shape: tuple[int, ...], hint: str) -> None:
    layer: nn.Module = LAYERS[name]()
    message = f"{name}: expected tokens (B, H, W, 8), got shape {shape}{hint}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        layer(torch.randn(shape))
