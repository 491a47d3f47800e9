"""Layers of VMamba for networks of your own.

Tokens are (B, H, W, C) everywhere; only `Stem` takes an image (B, C, H, W). Parameters are initialised in the
constructors.
"""

from vmamba.layers.block import Block
from vmamba.layers.downsample import ConvDownsample, PatchMerging
from vmamba.layers.mlp import Mlp
from vmamba.layers.ss2d import SS2D
from vmamba.layers.stem import MapStem, Stem
from vmamba.layers.upsample import PatchExpand

__all__ = ["SS2D", "Block", "ConvDownsample", "MapStem", "Mlp", "PatchExpand", "PatchMerging", "Stem"]
