"""The normalisations of ``mamba_ssm.ops.triton.layer_norm``, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last dimension, with an optional residual added before.

    Args:
        hidden_size: Channels.
        eps: Added to the mean square.
        device: Where to create the weight.
        dtype: Its dtype.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0 else None
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `layer_norm_fn`."""
        x = x if self.drop is None else self.drop(x)
        return rms_norm_fn(
            x, self.weight, None, residual, eps=self.eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32
        )


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Add a residual, then normalise, in float32.

    Args:
        x: (…, D).
        weight: (D,).
        bias: (D,).
        residual: Added to x, (…, D).
        eps: Added to the variance, or the mean square.
        prenorm: Return the sum too, the residual of the next block.
        residual_in_fp32: That sum in float32, else in the residual's dtype (x's without one).
        is_rms_norm: Divide by the root mean square alone.

    Returns:
        Normalised, x's dtype; with `prenorm` (normalised, sum).
    """
    total = x.float() if residual is None else x.float() + residual.float()
    if is_rms_norm:
        y = F.rms_norm(total, total.shape[-1:], weight.float(), eps)
        y = y if bias is None else y + bias.float()
    else:
        y = F.layer_norm(total, total.shape[-1:], weight.float(), None if bias is None else bias.float(), eps)
    if not prenorm:
        return y.to(x.dtype)
    kept = torch.float32 if residual_in_fp32 else (x if residual is None else residual).dtype
    return y.to(x.dtype), total.to(kept)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`layer_norm_fn` that divides by the root mean square alone."""
    return layer_norm_fn(
        x, weight, bias, residual, eps=eps, prenorm=prenorm, residual_in_fp32=residual_in_fp32, is_rms_norm=True
    )
