"""`Stem`: from an image to tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmamba.layers.layout import check_image


class Stem(nn.Module):
    """Image to tokens of stride 4: (B, in_chans, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, dim).

    Args:
        in_chans: Channels of the image.
        dim: Channels of the tokens.
        overlapping: Two 3×3 convolutions of stride 2; otherwise 4×4 patches, which leave out a remainder of H or W.
        norm: LayerNorm after each convolution.
        device: Where to create the parameters.
        dtype: Their dtype.

    Example:
        >>> import torch
        >>> Stem(3, 64)(torch.randn(2, 3, 56, 80)).shape
        torch.Size([2, 14, 20, 64])
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        overlapping: bool = True,
        norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()

        def norm_of(channels: int) -> nn.Module:
            return nn.LayerNorm(channels, device=device, dtype=dtype) if norm else nn.Identity()

        if overlapping:
            self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, device=device, dtype=dtype)
            self.norm1 = norm_of(dim // 2)
            self.act: nn.Module = nn.GELU()
            self.conv2: nn.Module = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, device=device, dtype=dtype)
            self.norm2 = norm_of(dim)
        else:
            self.conv1 = nn.Conv2d(in_chans, dim, 4, stride=4, device=device, dtype=dtype)
            self.norm1 = norm_of(dim)
            self.act = self.conv2 = self.norm2 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x)

    def tokens(self, x: Tensor) -> Tensor:
        """Output of ``forward``, for subclasses (TorchScript has no ``super()``)."""
        if not torch.jit.is_scripting():
            check_image(x, getattr(self.conv1, "in_channels", x.shape[1]), "Stem")
        x = self.conv1(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = self.act(self.norm1(x))
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class MapStem(Stem):
    """`Stem` that hands out its tokens as a map: (B, in_chans, H, W) → (B, dim, H/4, W/4), channels-last memory."""

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x).permute(0, 3, 1, 2)
