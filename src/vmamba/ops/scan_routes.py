"""`scan_routes`: selective scans along any routes through the tokens of an image, given as index maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vmamba.ops.backends import is_decomposed, select
from vmamba.ops.custom_op import define
from vmamba.ops.derivatives import register_derivatives
from vmamba.ops.gathered_scan import gathered_scan
from vmamba.ops.operands import RoutesOperands
from vmamba.ops.private_torch import is_exporting
from vmamba.ops.selective_scan import scan_flops

_OPERANDS = "Tensor x, Tensor dbc, Tensor dt_weight, Tensor A, Tensor D, Tensor dt_bias, Tensor order, bool by_route"


def scan_routes(
    x: Tensor,
    dbc: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    order: Tensor,
    reduce: str | None = "sum",
) -> Tensor:
    """Selective scans over the tokens of an image, one along each route of `order`.

    For route k, whose t-th token is ``l = order[k, t]``, with (r, b, c) = ``dbc[l, k]``::

        Δ[t] = softplus(dt_weight[k] r + dt_bias[k])
        h[t] = exp(Δ[t] A[k]) h[t-1] + Δ[t] x[l] b
        y_k[l] = Σ_n c h[t] + D[k] x[l]

    Where `order` is -1 there is padding: x and (r, b, c) are zero, so that ``Δ = softplus(dt_bias[k])``; it adds
    nothing to the state, which decays all the same, and has no output. A route that leaves a token out gives it zero,
    one that comes to it twice the sum.

    Any order is possible (`vmamba.ops.orders` has some). On a CPU the native kernels read and write through the order;
    elsewhere, and in exported programs, tokens are copied along the routes, by PyTorch's operations around
    `selective_scan`, so that `ss2d_scan` is faster where its patterns do. State, Δ and sums are float32, or float64
    for float64 x.

    Args:
        x: Features, (B, H, W, D) or (B, T, D), any floating dtype.
        dbc: Rank-R part of Δ, B and C of every token and route, (B, H, W, K, R+2N) or (B, T, K, R+2N); without K, all
            routes share them.
        dt_weight: (K, D, R).
        A: (K, D, N).
        D: Skip, (K, D).
        dt_bias: (K, D).
        order: Row-major indices of tokens, or -1, for all samples, (K, L), or for each, (B, K, L); int64 or int32.
        reduce: ``"sum"`` of the routes, or None.

    Returns:
        Like x; without `reduce` (B, K, H, W, D) or (B, K, T, D), by route. x's dtype.

    Raises:
        TypeError: For an operand that is not a floating-point tensor, or an order that is not one of integers.
        ValueError: For shapes that do not fit, another `reduce`, operands on different devices, or indices outside of
            the image (on a CPU; on other devices they are PyTorch's to notice).

    Example:
        >>> from vmamba.ops import orders
        >>> order = orders.hilbert(8, 8)[None]  # (1, 64)
        >>> x, dbc = torch.randn(1, 8, 8, 16), torch.randn(1, 8, 8, 1, 1 + 2 * 2)  # R = 1, N = 2
        >>> dt_weight, A = torch.randn(1, 16, 1), -torch.rand(1, 16, 2)
        >>> D, dt_bias = torch.ones(1, 16), torch.zeros(1, 16)
        >>> scan_routes(x, dbc, dt_weight, A, D, dt_bias, order).shape
        torch.Size([1, 8, 8, 16])
    """
    if reduce not in ("sum", None):
        raise ValueError(f"scan_routes: reduce must be 'sum' or None, got {reduce!r}")
    operands = RoutesOperands(x, dbc, dt_weight, A, D, dt_bias, order, reduce is None)
    if _is_native(operands):
        y: Tensor = torch.ops.vmamba.scan_routes(*operands)
        return y
    operands.check()
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        operands.check_indices()
    return gathered_scan(operands)


def _is_native(operands: RoutesOperands) -> bool:
    """True if the native kernels answer, in eager mode and in graphs compiled for this machine."""
    if not all(isinstance(t, Tensor) and t.device.type == "cpu" for t in operands[:7]):
        return False
    return not (is_exporting() or is_decomposed()) and select(operands.x.device).name == "native"


def _run(*arguments: Any) -> Tensor:
    operands = RoutesOperands(*arguments)
    operands.check()
    operands.check_indices()
    if operands.x.shape[0] == 0:
        return gathered_scan(operands)
    from vmamba.ops.backends import native

    return native.scan_routes(operands)


def _run_backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    operands = RoutesOperands(*arguments)
    operands.check(dy)
    operands.check_indices()
    if operands.x.shape[0] == 0:
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in operands[:6])
    from vmamba.ops.backends import native

    grads = native.scan_routes_backward(dy, operands)
    return tuple(g.to(t.dtype).contiguous() for g, t in zip(grads, operands[:6], strict=True))


_GRADIENTS = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"
_scan_routes = define("scan_routes", f"({_OPERANDS}) -> Tensor", _run)
_scan_routes_backward = define("scan_routes_backward", f"(Tensor dy, {_OPERANDS}) -> ({_GRADIENTS})", _run_backward)


@_scan_routes.register_fake
def _(*arguments: Any) -> Tensor:
    operands = RoutesOperands(*arguments)
    operands.check()
    x = operands.x
    return x.new_empty(x.shape[0], operands.A.shape[0], *x.shape[1:]) if operands.by_route else x.new_empty(x.shape)


@_scan_routes_backward.register_fake
def _(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    operands = RoutesOperands(*arguments)
    operands.check(dy)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in operands[:6])


def _plain(*arguments: Any) -> Tensor:
    return gathered_scan(RoutesOperands(*arguments))


def _plain_backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    pull = torch.func.vjp(lambda *tensors: _plain(*tensors, *arguments[6:]), *arguments[:6])[1]
    return tuple(pull(dy))


def _backward(dy: Tensor, *operands: Any) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = torch.ops.vmamba.scan_routes_backward(dy, *operands)
    return grads


register_derivatives(_scan_routes, _plain, _backward)
register_derivatives(_scan_routes_backward, _plain_backward)


@register_flop_formula(torch.ops.vmamba.scan_routes)
def _flops(x: Any, dbc: Any, dt_weight: Any, A: Any, D: Any, dt_bias: Any, order: Any, *_: Any, **__: Any) -> int:
    visits: int = x[0] * order[-2] * order[-1]
    projection: int = 2 * visits * x[-1] * dt_weight[2]
    return scan_flops(visits, x[-1], A[2], skip=True) + projection


@register_flop_formula(torch.ops.vmamba.scan_routes_backward, get_raw=True)
def _backward_flops(dy: Tensor, *operands: Any, **_: Any) -> int:
    forward: int = _flops(*operands)
    return 3 * forward  # the states again, then twice the forward as for a matrix product
