"""Cost of a model: parameters, multiply-adds and activations, per layer and in all, at any resolution.

Multiply-adds ("MACs", the column that papers call FLOPs) are counted as the VMamba paper counts them, with fvcore's
conventions: a matrix product or convolution one per multiplication; a scan ``9·L·D·N`` per route plus ``L·D`` for the
skip; its Δ projection as a matrix product; a normalisation 4 per element, 5 with an affine map (batch norm at inference
1 and 2). Activation functions, additions and pooling count nothing.

FLOPs are what `torch.utils.flop_counter.FlopCounterMode` says: two per multiply-add of a matrix product or convolution,
the scan as above, nothing for normalisations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vmamba.errors import OptionError
from vmamba.ops.selective_scan import scan_flops

KINDS = ("convolution", "matrix product", "scan", "normalisation")

_Formula = Callable[..., int]


@dataclass(frozen=True)
class LayerCost:
    """The cost of one module for one image, with everything inside it.

    Attributes:
        name: Its name in the model; empty for the whole model.
        parameters: Number of parameters.
        macs: Multiply-adds by `KINDS`.
        flops: Floating-point operations.
        activations: Elements written by convolutions, matrix products and scans.
    """

    name: str
    parameters: int
    macs: Mapping[str, int]
    flops: int
    activations: int

    @property
    def total_macs(self) -> int:
        """Multiply-adds of all kinds."""
        return sum(self.macs.values())


@torch.no_grad()
def cost(model: nn.Module, image_size: tuple[int, int] = (224, 224), in_chans: int = 3) -> list[LayerCost]:
    """Count a forward pass of one image.

    Args:
        model: Any model of images (B, C, H, W), ours or timm's, on any device; it runs with tensors without values, so
            nothing is computed, and operations that only one device knows are not counted as something else.
        image_size: (H, W) in pixels.
        in_chans: C.

    Returns:
        The whole model first, then every module that has parameters or computes something, in the order of
        ``named_modules``.

    Raises:
        OptionError: If the model cannot take such an image.

    Example:
        >>> import vmamba
        >>> whole, *layers = cost(vmamba.create_model("vmamba_tiny_s1l8"))
        >>> f"{whole.parameters / 1e6:.1f} M parameters, {whole.total_macs / 1e9:.1f} G multiply-adds"
        '30.2 M parameters, 4.9 G multiply-adds'
    """
    image = torch.zeros(1, in_chans, *image_size, device="meta", dtype=next(model.parameters()).dtype)
    tensors = {name: t.to("meta") for name, t in chain(model.named_parameters(), model.named_buffers())}
    training = model.training
    flops = FlopCounterMode(display=False)
    macs = FlopCounterMode(display=False, custom_mapping=_mac_formulas())
    activations = FlopCounterMode(display=False, custom_mapping=_activation_formulas())
    try:
        with flops, macs, activations:
            functional_call(model.eval(), tensors, (image,))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise OptionError(f"{type(model).__name__} cannot take an image of {image_size}: {reason}") from None
    finally:
        model.train(training)

    layers = []
    for name, module in model.named_modules():
        key = f"{type(model).__name__}.{name}" if name else "Global"
        by_kind = dict.fromkeys(KINDS, 0)
        for packet, count in macs.flop_counts[key].items():
            by_kind[_kind(packet)] += count
        row = LayerCost(
            name,
            sum(p.numel() for p in module.parameters()),
            by_kind,
            sum(flops.flop_counts[key].values()),
            sum(activations.flop_counts[key].values()),
        )
        if not name or row.parameters or row.total_macs:
            layers.append(row)
    return layers


def _kind(packet: Any) -> str:
    if packet in _NORMS:
        return "normalisation"
    if packet in _SCANS:
        return "scan"
    return "convolution" if packet is torch.ops.aten.convolution else "matrix product"


def _registered(packet: Any, flops_per_mac: int) -> _Formula:
    """Multiply-adds from an operator's registered FLOP formula."""

    def macs(*args: Any, **kwargs: Any) -> int:
        return flop_registry[packet](*args, **kwargs) // flops_per_mac

    macs._get_raw = True  # type: ignore[attr-defined]  # the registered one turns tensors into shapes itself
    return macs


def ss2d_macs(x: Any, dbc: Any, dt_weight: Any, A: Any, *_: Any, **__: Any) -> int:
    """Multiply-adds of `vmamba.ops.ss2d_scan`, from the shapes of its operands."""
    batch, height, width, channels = x
    routes, _, rank = dt_weight
    tokens = routes * batch * height * width
    return scan_flops(tokens, channels, A[2], skip=True) + tokens * channels * rank


def _routes_macs(x: Any, dbc: Any, dt_weight: Any, A: Any, D: Any, dt_bias: Any, order: Any, *_: Any, **__: Any) -> int:
    visits = x[0] * order[-2] * order[-1]
    macs: int = scan_flops(visits, x[-1], A[2], skip=True) + visits * x[-1] * dt_weight[2]
    return macs


def _norm_macs(weight: int) -> _Formula:
    """4 per element; 5 where the operand at this position is a tensor (only those have a shape)."""
    return lambda x, *args, **_: math.prod(x) * (5 if args[weight - 1] is not None else 4)


def _batch_norm_macs(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return math.prod(x) * (2 if weight is not None else 1)


_SCANS: dict[Any, _Formula] = {
    torch.ops.vmamba.ss2d_scan: ss2d_macs,
    torch.ops.vmamba.scan_routes: _routes_macs,
    torch.ops.vmamba.selective_scan: _registered(torch.ops.vmamba.selective_scan, flops_per_mac=1),
}
_NORMS: dict[Any, _Formula] = {
    torch.ops.aten.native_layer_norm: _norm_macs(weight=2),
    torch.ops.aten.native_group_norm: _norm_macs(weight=1),
    torch.ops.aten.native_batch_norm: _batch_norm_macs,
    torch.ops.aten._native_batch_norm_legit_no_training: _batch_norm_macs,
    torch.ops.aten.cudnn_batch_norm: _batch_norm_macs,
}


def _mac_formulas() -> dict[Any, _Formula]:
    return {packet: _registered(packet, flops_per_mac=2) for packet in flop_registry} | _SCANS | _NORMS


def _activation_formulas() -> dict[Any, _Formula]:
    def elements(*_: Any, out_shape: Any, **__: Any) -> int:
        return math.prod(out_shape if isinstance(out_shape, torch.Size) else out_shape[0])  # the scan's output, state

    return dict.fromkeys(flop_registry, elements)
