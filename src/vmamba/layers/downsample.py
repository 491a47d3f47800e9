"""Half the resolution: `ConvDownsample` and `PatchMerging`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.layers.call import call
from vmamba.layers.layout import check_tokens


class ConvDownsample(nn.Module):
    """Strided convolution, then LayerNorm: (B, H, W, dim) → (B, ⌈H/2⌉, ⌈W/2⌉, out_dim); kernel 2 rounds down.

    Args:
        dim: Channels.
        out_dim: Channels of the result.
        kernel_size: 2 or 3.
        device: Where to create the parameters.
        dtype: Their dtype.

    Example:
        >>> import torch
        >>> ConvDownsample(64, 128)(torch.randn(2, 14, 20, 64)).shape
        torch.Size([2, 7, 10, 128])
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride=2, padding=padding, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(out_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "ConvDownsample")
        x = x.permute(0, 3, 1, 2)
        x = self.conv(x) if torch.jit.is_scripting() else call(self.conv, x)
        return self.norm(x.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Concatenate 2×2 tokens, LayerNorm, linear map: (B, H, W, dim) → (B, ⌈H/2⌉, ⌈W/2⌉, out_dim).

    As in the Swin Transformer (Liu et al. 2021). An odd row or column is completed with zeros.

    Args:
        dim: Channels.
        out_dim: Channels of the result; twice `dim` by default.
        device: Where to create the parameters.
        dtype: Their dtype.

    Example:
        >>> import torch
        >>> PatchMerging(64)(torch.randn(2, 14, 20, 64)).shape
        torch.Size([2, 7, 10, 128])
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        out_dim = 2 * dim if out_dim is None else out_dim
        self.norm: nn.Module = nn.LayerNorm(4 * dim, device=device, dtype=dtype)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "PatchMerging")
        x = self.norm(concatenate_patches(x))
        return self.reduction(x) if torch.jit.is_scripting() else call(self.reduction, x)


def concatenate_patches(x: Tensor) -> Tensor:
    """The 2×2 tokens of each patch, column by column; zeros for what is missing: (B, H, W, C) → (B, H/2, W/2, 4C)."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
