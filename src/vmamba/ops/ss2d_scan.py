"""`ss2d_scan`: the two-dimensional selective scan of VMamba as a PyTorch operator."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vmamba.ops.backends import Implementation, chunked, implementation, is_decomposed, requested
from vmamba.ops.custom_op import define
from vmamba.ops.derivatives import register_derivatives, sample_by_sample
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.selective_scan import scan_flops

_OPERANDS = "Tensor x, Tensor dbc, Tensor dt_weight, Tensor A, Tensor D, Tensor dt_bias, str pattern, str? backend=None"


def ss2d_scan(
    x: Tensor,
    dbc: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    pattern: str = "cross",
) -> Tensor:
    """Sum of K selective scans over the tokens of an image, each along its own route (Liu et al., "VMamba", 2024).

    For route k and an image-order token l, with (r, b, c) = ``dbc[l, k]``::

        Δ[l] = softplus(dt_weight[k] r + dt_bias[k])
        h[l] = exp(Δ[l] A[k]) h[prev(l)] + Δ[l] x[l] b
        y[l] = Σ_k Σ_n c h[l] + D[k] x[l]

    Routes are index maps: nothing is permuted. ``dbc`` is the product of x and the stacked projections ``Wx_k``, one
    matrix product for all routes. State, Δ and sums are float32, or float64 for float64 x.

    Args:
        x: Features, (B, H, W, D), any floating dtype.
        dbc: Rank-R part of Δ, B and C of every token and route, (B, H, W, K, R+2N).
        dt_weight: (K, D, R).
        A: (K, D, N), negative for a stable recurrence.
        D: Skip, (K, D).
        dt_bias: (K, D).
        pattern: ``"cross"``, ``"unidirectional"``, ``"bidirectional"`` (K = 4), ``"rows"``, ``"rows_backward"``,
            ``"columns"`` or ``"columns_backward"`` (K = 1); see `vmamba.ops.routes`.

    Returns:
        (B, H, W, D) of x's dtype.

    Raises:
        TypeError: For an operand that is not a floating-point tensor.
        ValueError: For an unknown pattern, shapes that do not fit, or operands on different devices.

    Example:
        >>> x, dbc = torch.randn(1, 14, 14, 16), torch.randn(1, 14, 14, 4, 1 + 2 * 2)  # R = 1, N = 2
        >>> y = ss2d_scan(x, dbc, torch.randn(4, 16, 1), -torch.rand(4, 16, 2), torch.ones(4, 16), torch.zeros(4, 16))
        >>> y.shape
        torch.Size([1, 14, 14, 16])
    """
    if not torch.jit.is_scripting():
        if is_decomposed():
            return chunked.ss2d_scan(SS2DOperands(x, dbc, dt_weight, A, D, dt_bias, pattern))
        routed: Tensor = torch.ops.vmamba.ss2d_scan(x, dbc, dt_weight, A, D, dt_bias, pattern, requested())
        return routed
    y: Tensor = torch.ops.vmamba.ss2d_scan(x, dbc, dt_weight, A, D, dt_bias, pattern)
    return y


def _run(*arguments: Any, module: Implementation | None = None) -> Tensor:
    operands = SS2DOperands(*arguments)
    operands.check()
    return (module or _module(operands)).ss2d_scan(operands)


def _run_backward(dy: Tensor, *arguments: Any, module: Implementation | None = None) -> tuple[Tensor, ...]:
    operands = SS2DOperands(*arguments)
    operands.check(dy)
    grads = (module or _module(operands)).ss2d_scan_backward(dy, operands)
    return tuple(g.to(t.dtype).contiguous() for g, t in zip(grads, operands[:6], strict=True))


def _module(operands: SS2DOperands) -> Implementation:
    return implementation(operands.x, operands.backend)


_GRADIENTS = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"
_ss2d_scan = define("ss2d_scan", f"({_OPERANDS}) -> Tensor", _run)
_ss2d_scan_backward = define("ss2d_scan_backward", f"(Tensor dy, {_OPERANDS}) -> ({_GRADIENTS})", _run_backward)


@_ss2d_scan.register_fake
def _(*arguments: Any) -> Tensor:
    operands = SS2DOperands(*arguments)
    operands.check()
    return torch.empty_like(operands.x, memory_format=torch.contiguous_format)


@_ss2d_scan_backward.register_fake
def _(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    operands = SS2DOperands(*arguments)
    operands.check(dy)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in operands[:6])


def _backward(dy: Tensor, *operands: Any) -> tuple[Tensor | None, ...]:
    return torch.ops.vmamba.ss2d_scan_backward(dy, *operands)


def _vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, dbc: Tensor, *rest: Any) -> tuple[Tensor, int]:
    """A rule for ``torch.func.vmap``: samples with common parameters are one batch."""
    if any(dim is not None for dim in in_dims[2:]):
        return sample_by_sample(torch.ops.vmamba.ss2d_scan)(info, in_dims, x, dbc, *rest)
    merged = (
        (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
        for t, dim in ((x, in_dims[0]), (dbc, in_dims[1]))
    )
    y = torch.ops.vmamba.ss2d_scan(*merged, *rest)
    return y.unflatten(0, (info.batch_size, -1)), 0


register_derivatives(_ss2d_scan, partial(_run, module=chunked), _backward, _vmap)
register_derivatives(_ss2d_scan_backward, partial(_run_backward, module=chunked))


@register_flop_formula(torch.ops.vmamba.ss2d_scan)
def _flops(x: Any, dbc: Any, dt_weight: Any, A: Any, *_: Any, **__: Any) -> int:
    batch, height, width, channels = x
    tokens: int = batch * height * width * A[0]
    projection: int = 2 * tokens * channels * dt_weight[2]
    return scan_flops(tokens, channels, A[2], skip=True) + projection


@register_flop_formula(torch.ops.vmamba.ss2d_scan_backward, get_raw=True)
def _backward_flops(dy: Tensor, *operands: Any, **_: Any) -> int:
    forward: int = _flops(*operands)
    return 3 * forward  # the states again, then twice the forward as for a matrix product
