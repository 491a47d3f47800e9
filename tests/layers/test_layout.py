"""Layers fed another layout name it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from vmamba import VMamba, VMambaConfig, freeze
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


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((2, 32, 33, 3), ", which looks like (B, H, W, 3): permute(0, 3, 1, 2) first"),
        ((3, 32, 32), ", which looks like a single image: unsqueeze(0) first"),
        ((2, 1, 32, 32), ""),
        ((2, 3, 0, 32), ""),
    ],
)
def test_other_images_are_named(shape: tuple[int, ...], hint: str, frozen: bool) -> None:
    model: nn.Module = VMamba(VMambaConfig(dims=(8, 8), depths=(1, 1))).eval()
    message = f"Stem: expected images (B, 3, H, W), got shape {shape}{hint}"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        (freeze(model) if frozen else model)(torch.randn(shape))
