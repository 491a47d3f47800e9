"""Operators of frozen layers on a CPU: products with weights packed once, in three precisions."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from vmamba.ops.backends import is_plain, select, unavailable
from vmamba.ops.checks import check_operands
from vmamba.ops.private_torch import is_exporting, is_observed
from vmamba.ops.routes import routes

#: How weights are stored and multiplied.
PRECISIONS = ("float32", "bfloat16", "int8")

torch.library.define(
    "vmamba::packed_linear",
    "(Tensor x, Tensor packed, int outputs, str precision, float eps, bool gelu, Tensor? residual) -> Tensor",
)
torch.library.define(
    "vmamba::packed_convolution",
    "(Tensor x, Tensor packed, int outputs, str precision, int kernel, int stride, int padding, Tensor? norm_weight, "
    "Tensor? norm_bias, float eps, bool gelu) -> Tensor",
)
torch.library.define(
    "vmamba::packed_block",
    "(Tensor x, Tensor[] layers, Tensor[] parameters, int hidden, str precision, str pattern, float[] eps) -> Tensor",
)


def can_pack() -> str | None:
    """The reason why this process has no packed layers; None if it has."""
    if (problem := unavailable("native")) is not None:
        return problem
    try:
        _kernels()
    except ImportError as error:
        return str(error)
    return None


def for_packed(x: Tensor) -> bool:
    """True if packed layers may take these tokens: float32 on a CPU, nobody looking at single operations."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if is_exporting() or is_observed() or is_plain():  # the former for other machines
        return False
    return select(x.device).name == "native"


def pack_linear(
    weight: Tensor, bias: Tensor | None, precision: str, norm: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The weights of a linear layer for `packed_linear`, as bytes that only this process understands.

    Args:
        weight: (M, C).
        bias: (M,) or None.
        precision: One of `PRECISIONS`. In int8 every column of the product has its own scale.
        norm: Weight and bias, (C,), of a LayerNorm before the layer. They become part of it: what is left of the
            LayerNorm is to normalise.
    """
    weight, bias = weight.double(), None if bias is None else bias.double()
    if norm is not None:
        bias = weight @ norm[1].double() + (0 if bias is None else bias)
        weight = weight * norm[0].double()
    return _kernels().pack(weight.float(), None if bias is None else bias.float(), precision)


def pack_convolution(weight: Tensor, bias: Tensor | None, precision: str) -> Tensor:
    """The weights (M, C, k, k) and bias (M,) of a dense convolution for `packed_convolution`."""
    return pack_linear(weight.permute(0, 2, 3, 1).flatten(1), bias, precision)


def packed_linear(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    precision: str,
    eps: float | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """A linear map of every token.

    Args:
        x: (…, C), float32.
        packed: Of `pack_linear`.
        outputs: M.
        precision: That of `packed`. bfloat16 rounds the tokens; int8 gives each token the scale and zero that its
            values need.
        eps: Normalise the tokens first.
        gelu: GELU (the exact one) of the result.
        residual: (…, M), added to the result in the end.

    Returns:
        (…, M), float32.
    """
    y: Tensor = torch.ops.vmamba.packed_linear(
        x, packed, outputs, precision, -1.0 if eps is None else eps, gelu, residual
    )
    return y


def packed_convolution(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    precision: str,
    geometry: tuple[int, int, int],
    norm: tuple[Tensor, Tensor, float] | None = None,
    gelu: bool = False,
) -> Tensor:
    """A dense convolution as a product of patches that are never stored, then LayerNorm and GELU.

    Args:
        x: (B, C, H, W) in any memory layout, float32.
        packed: Of `pack_convolution`.
        outputs: M.
        precision: That of `packed`.
        geometry: Kernel, stride and padding, the same in both directions.
        norm: Weight, bias and eps of a LayerNorm over the channels.
        gelu: GELU of the result.

    Returns:
        (B, H', W', M), float32.
    """
    weight, bias, eps = norm or (None, None, 0.0)
    y: Tensor = torch.ops.vmamba.packed_convolution(x, packed, outputs, precision, *geometry, weight, bias, eps, gelu)
    return y


def packed_block(
    x: Tensor,
    layers: list[Tensor],
    parameters: list[Tensor],
    hidden: int,
    precision: str,
    pattern: str,
    eps: list[float],
) -> Tensor:
    """A `vmamba.layers.Block` with a 3×3 convolution, SiLU and a LayerNorm after the scan, without a gate.

    Args:
        x: (B, H, W, C), float32.
        layers: Of `pack_linear`, with their LayerNorms: in_proj, x_proj, out_proj, and of the MLP, if there is one, fc1
            and fc2.
        parameters: Of the convolution, weight (9, D) and bias (D,); Δ's weight (K, D, R), A (K, D, N), D (K, D) and Δ's
            bias (K, D) of the scan. All float32.
        hidden: Hidden channels of the MLP; 0 for none.
        precision: That of `layers`. In bfloat16 and int8 the scan's operands are bfloat16; its states are float32.
        pattern: As for `ss2d_scan`.
        eps: Of the LayerNorms.

    Returns:
        (B, H, W, C), float32.
    """
    y: Tensor = torch.ops.vmamba.packed_block(x, layers, parameters, hidden, precision, pattern, eps)
    return y


@functools.cache
def _kernels() -> ModuleType:
    from vmamba.ops.backends.native import packed

    return packed


def _check_packed(op: str, packed: Tensor, inputs: int, outputs: int, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if outputs < 1 or inputs < 1 or packed.numel() != _kernels().packed_size(inputs, outputs, precision):
        raise ValueError(
            f"{op}: weights of {packed.numel()} bytes do not map {inputs} to {outputs} channels in {precision}"
        )


def _check_float32(op: str, **operands: Tensor | None) -> None:
    for name, tensor in operands.items():
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type not in ("cpu", "meta")):
            raise TypeError(f"{op}: {name} must be float32 on the CPU, got {tensor.dtype} on {tensor.device}")


def _linear_shape(x: Tensor, outputs: int, residual: Tensor | None) -> list[int]:
    _check_float32("packed_linear", x=x, residual=residual)
    shape = [*x.shape[:-1], outputs]
    if residual is not None and list(residual.shape) != shape:
        raise ValueError(f"packed_linear: residual must be {tuple(shape)}, got {tuple(residual.shape)}")
    return shape


@torch.library.impl("vmamba::packed_linear", "CPU")
def _linear(
    x: Tensor, packed: Tensor, outputs: int, precision: str, eps: float, gelu: bool, residual: Tensor | None
) -> Tensor:
    _linear_shape(x, outputs, residual)
    _check_packed("packed_linear", packed, x.shape[-1], outputs, precision)
    return _kernels().linear(x, packed, outputs, precision, eps, gelu, residual)


@torch.library.register_fake("vmamba::packed_linear")  # type: ignore[untyped-decorator]
def _(
    x: Tensor, packed: Tensor, outputs: int, precision: str, eps: float, gelu: bool, residual: Tensor | None
) -> Tensor:
    return x.new_empty(_linear_shape(x, outputs, residual))


def _convolution_shape(x: Tensor, outputs: int, kernel: int, stride: int, padding: int) -> list[int]:
    op = "packed_convolution"
    _check_float32(op, x=x)
    if x.ndim != 4 or min(kernel, stride) < 1 or padding < 0:
        raise ValueError(f"{op}: expected (B, C, H, W) and a kernel and stride of at least 1, got {tuple(x.shape)}")
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in x.shape[2:])
    return [x.shape[0], height, width, outputs]


@torch.library.impl("vmamba::packed_convolution", "CPU")
def _convolution(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    precision: str,
    kernel: int,
    stride: int,
    padding: int,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    gelu: bool,
) -> Tensor:
    op = "packed_convolution"
    shape = _convolution_shape(x, outputs, kernel, stride, padding)
    if min(shape[1:3]) < 1:
        raise ValueError(f"{op}: an image of {x.shape[2]}×{x.shape[3]} is smaller than the kernel")
    check_operands(op, {"norm_weight": (norm_weight, "M"), "norm_bias": (norm_bias, "M")}, {"M": outputs})
    _check_packed(op, packed, x.shape[1] * kernel * kernel, outputs, precision)
    norm = None if norm_weight is None or norm_bias is None else (norm_weight.contiguous(), norm_bias.contiguous())
    geometry = (kernel, stride, padding)
    return _kernels().convolution(x, packed, shape, precision, geometry, norm, eps, gelu)


@torch.library.register_fake("vmamba::packed_convolution")  # type: ignore[untyped-decorator]
def _(
    x: Tensor, packed: Tensor, outputs: int, precision: str, kernel: int, stride: int, padding: int, *_: object
) -> Tensor:
    return x.new_empty(_convolution_shape(x, outputs, kernel, stride, padding))


def _check_block(x: Tensor, parameters: list[Tensor], pattern: str) -> dict[str, int]:
    op, names = "packed_block", ("conv_weight", "conv_bias", "dt_weight", "A", "D", "dt_bias")
    if len(parameters) != len(names):
        raise ValueError(f"{op}: expected {len(names)} parameters, got {len(parameters)}")
    _check_float32(op, x=x, **dict(zip(names, parameters, strict=True)))
    shapes = ("T D", "D", "K D R", "K D N", "K D", "K D")
    operands = {name: (t, shape) for name, t, shape in zip(names, parameters, shapes, strict=True)}
    known = {"T": 9, "K": len(routes(pattern))}
    return check_operands(op, {"x": (x, "B H W C")} | operands, known)


@torch.library.impl("vmamba::packed_block", "CPU")
def _block(
    x: Tensor,
    layers: list[Tensor],
    parameters: list[Tensor],
    hidden: int,
    precision: str,
    pattern: str,
    eps: list[float],
) -> Tensor:
    sizes = _check_block(x, parameters, pattern)
    dim, inner = sizes["C"], sizes["D"]
    shapes = [(dim, inner), (inner, sizes["K"] * (sizes["R"] + 2 * sizes["N"])), (inner, dim)]
    shapes += [(dim, hidden), (hidden, dim)] if hidden else []
    if len(layers) != len(shapes) or len(eps) < 2 + bool(hidden):
        raise ValueError(
            f"packed_block: expected {len(shapes)} layers and an eps for every LayerNorm, got {len(layers)}"
        )
    for layer, (inputs, outputs) in zip(layers, shapes, strict=True):
        _check_packed("packed_block", layer, inputs, outputs, precision)
    parameters = [t.contiguous() for t in parameters]
    return _kernels().block(x, layers, parameters, hidden, precision, pattern, eps)


@torch.library.register_fake("vmamba::packed_block")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    layers: list[Tensor],
    parameters: list[Tensor],
    hidden: int,
    precision: str,
    pattern: str,
    eps: list[float],
) -> Tensor:
    _check_block(x, parameters, pattern)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
