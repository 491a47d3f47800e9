"""`depthwise_silu`: the convolution and the activation before the scan, on a GPU in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vmamba.ops.backends import is_decomposed, select
from vmamba.ops.checks import check_operands
from vmamba.ops.custom_op import define
from vmamba.ops.derivatives import register_derivatives
from vmamba.ops.operands import accumulation_dtype
from vmamba.ops.private_torch import is_exporting


@torch.fx.wrap
def depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of a depthwise 3×3 convolution of tokens with zeros around the image.

    Args:
        x: (B, H, W, C), any floating dtype.
        weight: (C, 1, 3, 3).
        bias: (C,) or None.

    Returns:
        (B, H, W, C) of x's dtype on a GPU; elsewhere what PyTorch's convolution gives.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this form)
        if on_gpu(x):
            if torch.is_autocast_enabled(x.device.type):
                x = x.to(torch.get_autocast_dtype(x.device.type))
            fused: Tensor = torch.ops.vmamba.depthwise_silu(x, weight, bias)
            return fused
    return F.silu(_convolution(x, weight, bias))


def on_gpu(x: Tensor) -> bool:
    """True if the fused kernel computes this."""
    if x.device.type not in ("cuda", "xpu") or x.dtype == torch.float64 or is_decomposed():
        return False
    return not is_exporting() and select(x.device).name == "triton"


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    z = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3])
    return z.permute(0, 2, 3, 1)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor | None = None) -> None:
    tokens = "B H W C"
    check_operands(
        "depthwise_silu",
        {"x": (x, tokens), "weight": (weight, "C 1 3 3"), "bias": (bias, "C"), "dy": (dy, tokens)},
    )


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from vmamba.ops.backends.triton import depthwise_silu as kernels

    _check(x, weight, bias)
    return kernels.depthwise_silu(x, weight, bias)


def _run_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    from vmamba.ops.backends.triton import depthwise_silu as kernels

    _check(x, weight, bias, dy)
    dx, dweight, dbias = kernels.depthwise_silu_backward(dy, x, weight, bias)
    return dx, dweight.to(weight.dtype).contiguous(), dbias.to(weight.dtype).contiguous()


_OPERANDS = "Tensor x, Tensor weight, Tensor? bias"
_operator = define("depthwise_silu", f"({_OPERANDS}) -> Tensor", _run)
_backward_operator = define(
    "depthwise_silu_backward", f"(Tensor dy, {_OPERANDS}) -> (Tensor, Tensor, Tensor)", _run_backward
)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check(x, weight, bias)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_backward_operator.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, bias, dy)
    dx, dweight = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight))
    return dx, dweight, weight.new_empty(weight.shape[0])


def _backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = torch.ops.vmamba.depthwise_silu_backward(dy, x, weight, bias)
    return dx, dweight, None if bias is None else dbias.to(bias.dtype)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.silu(_accumulated(x, weight, bias)).to(x.dtype)


def _plain_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    z = _accumulated(x, weight, bias)
    s = z.sigmoid()
    dz = dy.to(z.dtype) * s * (1 + z * (1 - s))
    dx = _convolution(dz, weight.to(z.dtype).flip(2, 3), None)
    padded = F.pad(x.to(z.dtype), (0, 0, 1, 1, 1, 1))
    height, width = x.shape[1:3]
    shifted = (padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3))
    dweight = torch.stack([(dz * t).sum((0, 1, 2)) for t in shifted], 1).view(weight.shape)
    return dx.to(x.dtype), dweight.to(weight.dtype), dz.sum((0, 1, 2)).to(weight.dtype)


def _accumulated(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with sums as exact as those of the kernels."""
    dtype = accumulation_dtype(x.dtype)
    return _convolution(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


register_derivatives(_operator, _plain, _backward)
register_derivatives(_backward_operator, _plain_backward)


@register_flop_formula(torch.ops.vmamba.depthwise_silu)
def _flops(x: Any, *_: Any, **__: Any) -> int:
    batch, height, width, channels = x
    count: int = 2 * 9 * batch * height * width * channels  # the multiply-adds of the convolution, as PyTorch counts
    return count


@register_flop_formula(torch.ops.vmamba.depthwise_silu_backward)
def _backward_flops(dy: Any, x: Any, *_: Any, **__: Any) -> int:
    return 3 * _flops(x)  # the convolution again, then twice the forward
