"""`convolution`: few tokens from many weights, on a CPU as a matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops.pointwise import for_onednn, pointwise, without_gradient


@torch.fx.wrap
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Dense convolution of a map in channels-last memory.

    On a CPU a convolution begins with rearranging its weights, which in the deeper layers, for one small image, takes
    several times as long as the convolution. There the patches are gathered instead.

    Args:
        x: (B, C, H, W).
        weight: (C', C, k, k).
        bias: (C',) or None.
        stride: Same for both directions.
        padding: Zeros on each side.

    Returns:
        (B, C', ⌊(H + 2·padding - k) / stride⌋ + 1, …) in channels-last memory.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this form)
        if for_onednn(x) and without_gradient():
            kernel, (batch, _, height, width) = weight.shape[-1], x.shape
            tokens = batch * (height // stride) * (width // stride)
            if tokens <= weight.shape[0]:  # fewer patches than there are to multiply them with
                patches = F.pad(x, [padding] * 4).unfold(2, kernel, stride).unfold(3, kernel, stride)
                patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
                return pointwise(patches, weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, stride, padding)
