"""`pointwise`: one linear map of every token, on a CPU by oneDNN.

PyTorch hands float32 linear layers on a CPU to MKL, which on AMD processors reaches half the speed of oneDNN; that it
uses for convolutions, and under ``torch.compile`` for linear layers whose weights are constants.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

# An operator of ours around PyTorch's, which torch.compile would otherwise refuse for weights that may change.
torch.library.define("vmamba::onednn_linear", "(Tensor x, Tensor weight, Tensor? bias, bool gelu) -> Tensor")


@torch.fx.wrap
def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """A linear map of every token, and GELU of it where asked for.

    Args:
        x: (B, H, W, C).
        weight: (C', C).
        bias: (C',) or None.
        gelu: Apply GELU (the exact one) to the result; without a gradient on a CPU it costs no pass over memory.

    Returns:
        (B, H, W, C').
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this form)
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_exporting():
            return _on_cpu(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def _on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    if _AVAILABLE and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        # It has no gradient, but saves the rearrangement of the weights that a convolution starts with.
        fused: Tensor = torch.ops.vmamba.onednn_linear(x, weight, bias, gelu)
        return fused
    y = F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return F.gelu(y) if gelu else y


@torch.library.impl("vmamba::onednn_linear", "CPU")
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


@torch.library.register_fake("vmamba::onednn_linear")  # type: ignore[untyped-decorator]
def _(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@register_flop_formula(torch.ops.vmamba.onednn_linear)
def _flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    tokens = 1
    for size in x[:-1]:
        tokens *= size
    return 2 * tokens * weight[0] * weight[1]
