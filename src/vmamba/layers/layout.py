"""The layouts of images and tokens: checks that name them."""

from __future__ import annotations

import torch
from torch import Tensor


def check_image(x: Tensor, in_chans: int, layer: str) -> None:
    """Refuse anything but images (B, in_chans, H, W) of at least one pixel, naming the layout that came instead.

    Raises:
        ValueError: For another rank or number of channels, or for no pixel.
    """
    if torch.jit.is_tracing() or not isinstance(x, Tensor):  # the last while fx traces
        return
    if x.ndim == 4 and x.shape[1] == in_chans and x.shape[2] and x.shape[3]:
        return
    hint = ""
    if x.ndim == 4 and x.shape[3] == in_chans:
        hint = f", which looks like (B, H, W, {in_chans}): permute(0, 3, 1, 2) first"
    elif x.ndim == 3 and x.shape[0] == in_chans:
        hint = ", which looks like a single image: unsqueeze(0) first"
    raise ValueError(f"{layer}: expected images (B, {in_chans}, H, W), got shape {tuple(x.shape)}{hint}")


def check_tokens(x: Tensor, dim: int, layer: str) -> None:
    """Refuse anything but tokens (B, H, W, dim), naming the layout that came instead.

    Raises:
        ValueError: For another rank or number of channels.
    """
    if torch.jit.is_scripting() or torch.jit.is_tracing() or not isinstance(x, Tensor):  # the last while fx traces
        return
    if x.ndim == 4 and x.shape[3] == dim:
        return
    hint = ""
    if x.ndim == 4 and x.shape[1] == dim:
        hint = f", which looks like (B, {dim}, H, W): permute(0, 2, 3, 1) first"
    elif x.ndim == 3 and x.shape[2] == dim:
        hint = f", which looks like (B, L, {dim}): unflatten(1, (H, W)) first"
    raise ValueError(f"{layer}: expected tokens (B, H, W, {dim}), got shape {tuple(x.shape)}{hint}")
