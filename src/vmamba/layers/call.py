"""`call` and `convolve`: the one place where layers are computed by other kernels than their own.

PyTorch hands float32 linear layers on a CPU to MKL, which on AMD processors reaches half of oneDNN's speed, and begins
a convolution by rearranging its weights, which takes longer than the convolution of a few tokens. On a GPU it writes
what a depthwise convolution gives to memory and reads it again for the activation. Whoever looks at a layer (adapters,
pruning, hooks, offloading, quantisers, counters, tracers) must find it called all the same.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from vmamba.ops import convolution, depthwise_silu, pointwise
from vmamba.ops.depthwise_silu import on_gpu
from vmamba.ops.private_torch import has_hooks, is_observed

_LINEAR_FORWARD, _CONV_FORWARD, _SILU_FORWARD = nn.Linear.forward, nn.Conv2d.forward, nn.SiLU.forward


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, by a faster kernel where that makes no difference but the time.

    Args:
        layer: Any module; a plain `nn.Linear` on tokens (B, H, W, C), or a plain `nn.Conv2d` with one stride and one
            padding on maps (B, C, H, W), may take the faster way.
        x: Its input.
    """
    if type(layer) is nn.Linear and nn.Linear.forward is _LINEAR_FORWARD and _is_untouched(layer, x):
        return pointwise(x, layer.weight, layer.bias)
    if type(layer) is nn.Conv2d and nn.Conv2d.forward is _CONV_FORWARD and _is_dense(layer) and _is_untouched(layer, x):
        return convolution(x, layer.weight, layer.bias, layer.stride[0], int(layer.padding[0]))
    return layer(x)


def convolve(conv: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """``act(conv(x))`` of tokens, on a GPU in one pass over memory where that makes no difference but the time.

    Args:
        conv: Any module for maps (B, C, H, W); a plain `nn.Conv2d` that is depthwise, 3×3 and keeps the size of the map
            may take the faster way.
        act: Any module for tokens; a plain `nn.SiLU` may.
        x: Tokens (B, H, W, C).
    """
    if isinstance(x, Tensor) and on_gpu(x) and _is_depthwise(conv) and _is_silu(act) and _is_fusible(conv, x):
        return depthwise_silu(x, conv.weight, conv.bias)
    return act(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def _is_dense(layer: nn.Conv2d) -> bool:
    """One stride, one padding with zeros, neither groups nor holes."""
    stride, padding = layer.stride[0], layer.padding[0]
    same = layer.stride == (stride, stride) and layer.padding == (padding, padding)  # never of "same", a word
    return same and layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _is_depthwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """A 3×3 filter for each channel, with zeros around the map."""
    if type(layer) is not nn.Conv2d or nn.Conv2d.forward is not _CONV_FORWARD:
        return False
    steps = layer.stride == layer.padding == layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return steps and layer.kernel_size == (3, 3) and layer.groups == layer.in_channels == layer.out_channels


def _is_silu(layer: nn.Module) -> bool:
    return type(layer) is nn.SiLU and nn.SiLU.forward is _SILU_FORWARD and not _is_changed(layer)


def _is_untouched(layer: nn.Linear | nn.Conv2d, x: Tensor) -> bool:
    """Plain, on the CPU, of the dtype of x."""
    if not _is_plain(layer, x) or is_observed():
        return False
    weight = layer.weight
    return x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype


def _is_fusible(layer: nn.Conv2d, x: Tensor) -> bool:
    """Plain, on the device of x, and of its dtype or on the way to that of autocast."""
    if not _is_plain(layer, x) or is_observed():
        return False
    weight = layer.weight
    return x.device == weight.device and (x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type))


def _is_changed(layer: nn.Module) -> bool:
    """True with a hook, or a ``forward`` of its own."""
    return has_hooks(layer) or "forward" in layer.__dict__


def _is_plain(layer: nn.Module, x: Tensor) -> bool:
    """Nothing changed, plain parameters, a plain x of a batch."""
    if _is_changed(layer):
        return False
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    return (
        type(x) is Tensor
        and type(weight) is nn.Parameter
        and (type(bias) is nn.Parameter or (bias is None and "bias" in layer._parameters))
        and x.ndim == 4
    )
