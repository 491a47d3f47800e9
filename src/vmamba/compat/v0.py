"""The authors' first generation of layers (VMamba, January 2024), as VM-UNet, Swin-UMamba, MambaIR … copied it.

The same arguments, defaults, layouts and entry names, so that code and checkpoints fit as they are; computed by the
operators of `vmamba.ops`. Tokens are (B, H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vmamba.compat.ss2d import AuthorSS2D, depthwise
from vmamba.layers import PatchExpand, PatchMerging
from vmamba.layers.call import call
from vmamba.layers.layout import check_tokens

__all__ = ["SS2D", "Final_PatchExpand2D", "PatchExpand2D", "PatchMerging2D", "VSSBlock", "VSSLayer"]

Norm = Callable[[int], nn.Module]


class SS2D(AuthorSS2D):
    """in_proj → split off gate → depthwise conv → SiLU → cross scan → LayerNorm → × SiLU(gate) → out_proj.

    Args:
        d_model: Channels.
        d_state: State size N.
        d_conv: Kernel size of the convolution.
        expand: Inner channels as a multiple of `d_model`.
        dt_rank: Rank of Δ; ``"auto"`` is ``ceil(d_model / 16)``.
        dt_min: Smallest initial step.
        dt_max: Largest initial step.
        dt_init: Initial Δ projection: ``"random"`` or ``"constant"``.
        dt_scale: Its scale.
        dt_init_floor: Lower limit of the initial step.
        dropout: Of the result.
        conv_bias: Give the convolution a bias.
        bias: Give the projections biases.
        device: Where to create the parameters.
        dtype: Their dtype.
        **kwargs: Ignored, as the authors' class does.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 3,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        dropout: float = 0.0,
        conv_bias: bool = True,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        inner = int(expand * d_model)
        super().__init__(d_model, inner, d_state, dt_rank, layers=False, **factory)
        self.d_conv, self.expand = d_conv, expand
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, **factory)
        self.conv2d = depthwise(inner, d_conv, conv_bias, **factory)
        self.act = nn.SiLU()
        self.out_norm = nn.LayerNorm(inner, **factory)
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **factory)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.init_scan("mamba", dt_min, dt_max, dt_init, dt_scale, dt_init_floor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, d_model) → (B, H, W, d_model)."""
        check_tokens(x, self.d_model, "SS2D")
        x, gate = call(self.in_proj, x).chunk(2, dim=-1)
        y = call(self.out_proj, self.out_norm(self.mix(x)) * F.silu(gate))
        return y if self.dropout is None else self.dropout(y)


class VSSBlock(nn.Module):
    """``x + drop_path(SS2D(norm(x)))`` on tokens (B, H, W, hidden_dim); further arguments go to `SS2D`."""

    def __init__(
        self,
        hidden_dim: int = 0,
        drop_path: float = 0,
        norm_layer: Norm = partial(nn.LayerNorm, eps=1e-6),  # noqa: B008 (no state)
        attn_drop_rate: float = 0,
        d_state: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.ln_1 = norm_layer(hidden_dim)
        self.self_attention = SS2D(d_model=hidden_dim, dropout=attn_drop_rate, d_state=d_state, **kwargs)
        self.drop_path = DropPath(drop_path)

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, hidden_dim) → (B, H, W, hidden_dim)."""
        return input + self.drop_path(self.self_attention(self.ln_1(input)))


class VSSLayer(nn.Module):
    """`depth` blocks, then `downsample`.

    Args:
        dim: Channels.
        depth: Blocks.
        attn_drop: Dropout after each SS2D.
        drop_path: Stochastic depth, one rate or one a block.
        norm_layer: Normalisation of the blocks and of `downsample`.
        downsample: Class of the layer at the end, called with ``dim=, norm_layer=``; None for none.
        use_checkpoint: Recompute blocks in the backward pass.
        d_state: State size.
        **kwargs: For `SS2D`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        attn_drop: float = 0.0,
        drop_path: float | Sequence[float] = 0.0,
        norm_layer: Norm = nn.LayerNorm,
        downsample: Callable[..., nn.Module] | None = None,
        use_checkpoint: bool = False,
        d_state: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.dim, self.use_checkpoint = dim, use_checkpoint
        rates = [drop_path] * depth if isinstance(drop_path, (int, float)) else list(drop_path)
        self.blocks = nn.ModuleList(VSSBlock(dim, rate, norm_layer, attn_drop, d_state, **kwargs) for rate in rates)
        self.downsample = None if downsample is None else downsample(dim=dim, norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) → what `downsample` gives, or the same shape."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.use_checkpoint else block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchMerging2D(PatchMerging):
    """2×2 tokens to one: (B, H, W, dim) → (B, ⌊H/2⌋, ⌊W/2⌋, 2·dim); an odd row or column is left out."""

    def __init__(self, dim: int, norm_layer: Norm = nn.LayerNorm) -> None:
        super().__init__(dim)
        self.norm: nn.Module = norm_layer(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) → (B, ⌊H/2⌋, ⌊W/2⌋, 2·dim)."""
        return super().forward(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])


class PatchExpand2D(PatchExpand):
    """A token to scale×scale of them: (B, H, W, 2·dim) → (B, sH, sW, 2·dim/s)."""

    def __init__(self, dim: int, dim_scale: int = 2, norm_layer: Norm = nn.LayerNorm) -> None:
        super().__init__(2 * dim, scale=dim_scale)
        self.norm: nn.Module = norm_layer(2 * dim // dim_scale)


class Final_PatchExpand2D(PatchExpand):
    """The last one: (B, H, W, dim) → (B, sH, sW, dim/s)."""

    def __init__(self, dim: int, dim_scale: int = 4, norm_layer: Norm = nn.LayerNorm) -> None:
        super().__init__(dim, scale=dim_scale)
        self.norm: nn.Module = norm_layer(dim // dim_scale)
