"""Layers with packed weights in C++: what frozen models are computed by on a CPU.

Weights lie in panels as the instruction set likes them, so packed tensors are for this process. Activations between
layers are float32; a product turns rows into its precision as it reads them, and adds bias, GELU and residual as it
writes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vmamba.ops.backends import native
from vmamba.ops.backends.native import _native  # compiled
from vmamba.ops.routes import routes

if not hasattr(_native, "product_sets"):
    raise ImportError("the compiled CPU kernels are older than their Python sources; build them anew (make native)")

#: Instruction sets that this processor runs, the best first.
PRODUCT_SETS = tuple(_native.product_sets())

_PRECISIONS = {"float32": 0, "bfloat16": 1, "int8": 2}  # enum Precision in csrc
_isa = PRODUCT_SETS[0]


def packed_size(inputs: int, outputs: int, precision: str) -> int:
    """Bytes of a packed layer."""
    return _packed_size(_isa, inputs, outputs, precision)


@functools.cache  # asked for at every call
def _packed_size(isa: str, inputs: int, outputs: int, precision: str) -> int:
    size: int = _native.packed_bytes(isa, _PRECISIONS[precision], inputs, outputs)
    return size


def pack(weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """Weight (M, C) and bias (M,), float32, as bytes for `linear`."""
    outputs, inputs = weight.shape
    packed = torch.empty(packed_size(inputs, outputs, precision), dtype=torch.uint8)
    operands = native._addresses([weight := weight.contiguous(), bias, packed])
    _native.pack(_isa, _PRECISIONS[precision], inputs, outputs, operands)
    return packed


def linear(
    x: Tensor, packed: Tensor, outputs: int, precision: str, eps: float, gelu: bool, residual: Tensor | None
) -> Tensor:
    """See `vmamba.ops.packed_linear`."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    y = x.new_empty((*x.shape[:-1], outputs))
    inputs = x.shape[-1]
    sizes = [x.numel() // inputs, inputs, outputs]
    operands = native._addresses([packed, x, residual, y])
    _native.packed_linear(_isa, _PRECISIONS[precision], torch.get_num_threads(), sizes, operands, eps, gelu)
    return y


def convolution(
    x: Tensor,
    packed: Tensor,
    shape: Sequence[int],
    precision: str,
    geometry: Sequence[int],
    norm: tuple[Tensor, Tensor] | None,
    eps: float,
    gelu: bool,
) -> Tensor:
    """See `vmamba.ops.packed_convolution`; `shape` is that of the result."""
    y = x.new_empty(shape)
    norm_weight, norm_bias = norm or (None, None)
    sizes = [*x.shape, *x.stride(), *geometry, shape[-1]]
    operands = native._addresses([packed, x, norm_weight, norm_bias, y])
    _native.packed_convolution(_isa, _PRECISIONS[precision], torch.get_num_threads(), sizes, operands, eps, gelu)
    return y


def block(
    x: Tensor, layers: Sequence[Tensor], parameters: Sequence[Tensor], hidden: int, precision: str, pattern: str,
    eps: Sequence[float],
) -> Tensor:  # fmt: skip
    """See `vmamba.ops.packed_block`."""
    x = x.contiguous()
    y = torch.empty_like(x)
    dt_weight, A = parameters[2:4]
    dim, (count, inner, rank), states = x.shape[-1], dt_weight.shape, A.shape[-1]
    shapes = [dim, inner, inner, count * (rank + 2 * states), inner, dim]
    shapes += [dim, hidden, hidden, dim] if hidden else []
    _native.packed_block(
        _isa,
        native._isa,
        _PRECISIONS[precision],
        torch.get_num_threads(),
        [native._encode(route) for route in routes(pattern)],
        [*x.shape[:3], inner, rank, states],
        native._addresses(layers),
        shapes,
        native._addresses([x, y, *parameters]),
        list(eps),
    )
    return y
