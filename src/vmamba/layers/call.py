"""`call`: the one place where a layer is computed by another kernel than its own.

PyTorch hands float32 linear layers on a CPU to MKL, which on AMD processors reaches half of oneDNN's speed, and begins
a convolution by rearranging its weights, which takes longer than the convolution of a few tokens. Whoever looks at the
layer (adapters, pruning, hooks, offloading, quantisers, counters, tracers) must find it called all the same.
"""

from __future__ import annotations

from torch import Tensor, nn

from vmamba.ops import convolution, pointwise
from vmamba.ops.private_torch import has_hooks, is_observed

_LINEAR_FORWARD, _CONV_FORWARD = nn.Linear.forward, nn.Conv2d.forward


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


def _is_dense(layer: nn.Conv2d) -> bool:
    """One stride, one padding with zeros, neither groups nor holes."""
    stride, padding = layer.stride[0], layer.padding[0]
    same = layer.stride == (stride, stride) and layer.padding == (padding, padding)  # never of "same", a word
    return same and layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def _is_untouched(layer: nn.Linear | nn.Conv2d, x: Tensor) -> bool:
    return _is_plain(layer, x) and not is_observed()


def _is_plain(layer: nn.Linear | nn.Conv2d, x: Tensor) -> bool:
    """No hook, no replaced ``forward``, plain parameters on the CPU of the dtype of a plain x."""
    if has_hooks(layer) or "forward" in layer.__dict__:
        return False
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    return (
        type(x) is Tensor
        and type(weight) is nn.Parameter
        and (type(bias) is nn.Parameter or (bias is None and "bias" in layer._parameters))
        and x.ndim == 4
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
    )
