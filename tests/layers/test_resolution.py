"""Layers that change the resolution, against loops over the tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vmamba.layers import ConvDownsample, PatchExpand, PatchMerging, Stem


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)], ids=str)
def test_patch_merging(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = PatchMerging(3, 7), torch.randn(2, *size, 3)
    y = layer(x)
    rows, columns = (-(-n // 2) for n in size)
    assert y.shape == (2, rows, columns, 7)
    padded = torch.zeros(2, 2 * rows, 2 * columns, 3)
    padded[:, : size[0], : size[1]] = x
    for i in range(rows):
        for j in range(columns):
            corners = [padded[:, 2 * i + a, 2 * j + b] for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            token = F.layer_norm(torch.cat(corners, dim=-1), (12,), layer.norm.weight, layer.norm.bias)
            torch.testing.assert_close(y[:, i, j], token @ layer.reduction.weight.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "out_dim"), [(2, None), (4, None), (2, 3)])
def test_patch_expand(scale: int, out_dim: int | None) -> None:
    torch.manual_seed(0)
    layer, x = PatchExpand(8, out_dim, scale=scale), torch.randn(2, 3, 4, 8)
    y, channels = layer(x), out_dim or 8 // scale
    assert y.shape == (2, 3 * scale, 4 * scale, channels)
    spread = (x @ layer.expand.weight.T).view(2, 3, 4, scale, scale, channels)
    for i in range(3 * scale):
        for j in range(4 * scale):
            token = spread[:, i // scale, j // scale, i % scale, j % scale]
            torch.testing.assert_close(y[:, i, j], F.layer_norm(token, (channels,)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "expected"), [(3, (3, 4)), (2, (2, 3))])
def test_conv_downsample(kernel_size: int, expected: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = ConvDownsample(4, 6, kernel_size=kernel_size), torch.randn(2, 5, 7, 4)
    convolved = F.conv2d(x.permute(0, 3, 1, 2), layer.conv.weight, layer.conv.bias, 2, (kernel_size - 1) // 2)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = layer(x)
        assert y.shape == (2, *expected, 6)
        torch.testing.assert_close(y, F.layer_norm(convolved.permute(0, 2, 3, 1), (6,)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("overlapping", "expected"), [(True, (3, 4)), (False, (2, 3))])
@pytest.mark.parametrize("norm", [True, False])
def test_stem(overlapping: bool, norm: bool, expected: tuple[int, int]) -> None:
    layer = Stem(2, 8, overlapping=overlapping, norm=norm)
    y = layer(torch.randn(1, 2, 10, 14))
    assert y.shape == (1, *expected, 8)
    assert y.is_contiguous()
    if norm:
        torch.testing.assert_close(y.mean(-1), torch.zeros(1, *expected), atol=1e-5, rtol=0)
