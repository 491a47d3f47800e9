"""`PatchExpand`: a multiple of the resolution, the reverse of `PatchMerging`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmamba.layers.call import call
from vmamba.layers.layout import check_tokens


class PatchExpand(nn.Module):
    """Linear map, each token spread over scale×scale of them, LayerNorm: (B, H, W, dim) → (B, sH, sW, out_dim).

    As in Swin-Unet (Cao et al. 2021) and VM-UNet (Ruan and Xiang 2024): `scale` 2 between the stages of a decoder, 4
    before its last layer.

    Args:
        dim: Channels.
        out_dim: Channels of the result; `dim` / `scale` by default.
        scale: Multiple of the resolution.
        device: Where to create the parameters.
        dtype: Their dtype.

    Example:
        >>> import torch
        >>> PatchExpand(64, 32)(torch.randn(2, 7, 10, 64)).shape
        torch.Size([2, 14, 20, 32])
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        *,
        scale: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.scale = dim, scale
        out_dim = dim // scale if out_dim is None else out_dim
        self.expand = nn.Linear(dim, scale**2 * out_dim, bias=False, device=device, dtype=dtype)
        self.norm: nn.Module = nn.LayerNorm(out_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "PatchExpand")
        x = self.expand(x) if torch.jit.is_scripting() else call(self.expand, x)
        x = x.unflatten(-1, (self.scale, self.scale, -1))  # (B, H, W, s, s, out_dim)
        return self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))
