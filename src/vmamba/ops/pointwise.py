"""Linear maps of every token on its own, on a CPU by oneDNN.

PyTorch hands float32 linear layers on a CPU to MKL, which on AMD processors reaches half the speed of oneDNN; that it
uses for convolutions, and under ``torch.compile`` for linear layers whose weights are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vmamba.ops.backends import is_plain
from vmamba.ops.checks import check_operands
from vmamba.ops.derivatives import all_at_once, register_plain_derivatives
from vmamba.ops.private_torch import HAS_ONEDNN_LINEAR, is_exporting, is_known, onednn_linear, onednn_linear_add

#: Allocations of this size, in bytes, come from the operating system anew each time, which costs more than using them.
LARGE = 32 * 2**20
#: Tokens whose intermediate values stay in the cache.
BLOCK = 2048

# Operators of ours around PyTorch's, which torch.compile would otherwise refuse for weights that may change.
torch.library.define("vmamba::onednn_linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.define(
    "vmamba::onednn_branch",
    "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor[] weights, Tensor?[] biases, Tensor? residual)"
    " -> Tensor",
)


@torch.fx.wrap
def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map of every token.

    Args:
        x: (B, H, W, C).
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        (B, H, W, C').
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this form)
        if for_onednn(x) and HAS_ONEDNN_LINEAR and not torch.is_autocast_enabled("cpu"):
            linear: Tensor = torch.ops.vmamba.onednn_linear(x, weight, bias)
            return linear
    return F.linear(x, weight, bias)


@torch.fx.wrap
def pointwise_branch(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None = None,
) -> Tensor:
    """LayerNorm of every token, linear maps with GELU (the exact one) between them, and the residual.

    Without a gradient on a CPU it is one operator, which for large maps works through blocks of tokens, so that neither
    the normalised tokens nor the hidden ones are ever stored.

    Args:
        x: (B, H, W, C).
        norm_weight: (C,).
        norm_bias: (C,).
        eps: Of the LayerNorm.
        weights: Of the linear maps: (C₁, C), (C₂, C₁), …
        biases: (C₁,), (C₂,), …; None for none.
        residual: (B, H, W, Cₙ), added to the result, or None.

    Returns:
        (B, H, W, Cₙ).
    """
    if for_onednn(x) and without_gradient():
        fused: Tensor = torch.ops.vmamba.onednn_branch(x, norm_weight, norm_bias, eps, weights, biases, residual)
        return fused
    return _branch(pointwise, x, norm_weight, norm_bias, eps, weights, biases, residual)


def _branch(
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None = None,
) -> Tensor:
    x = F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = linear(F.gelu(x) if i else x, weight, bias)
    return x if residual is None else residual + x


def for_onednn(x: Tensor) -> bool:
    """True if oneDNN is the faster library for this tensor."""
    recorded = is_exporting() or torch.jit.is_tracing()  # for other machines and sizes
    return x.device.type == "cpu" and x.dtype == torch.float32 and not recorded and not is_plain()


def without_gradient() -> bool:
    """True if oneDNN's linear operators, which have no gradient, can be used."""
    return HAS_ONEDNN_LINEAR and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_operands("onednn_linear", {"x": (x, _tokens(x)), "weight": (weight, "M C"), "bias": (bias, "M")})


def _check_branch(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    residual: Tensor | None,
) -> None:
    op = "onednn_branch"
    if not weights or len(weights) != len(biases):
        raise ValueError(f"{op}: expected as many biases as weights, got {len(weights)} and {len(biases)}")
    sizes = check_operands(op, {"x": (x, _tokens(x)), "norm_weight": (norm_weight, "C"), "norm_bias": (norm_bias, "C")})
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        layer: dict[str, tuple[Any, str]] = {f"weights[{i}]": (weight, "M C"), f"biases[{i}]": (bias, "M")}
        sizes["C"] = check_operands(op, layer, {"C": sizes["C"]})["M"]
    check_operands(op, {"residual": (residual, _tokens(x))}, sizes)


def _tokens(x: Tensor) -> str:
    """Names of x's dimensions, the channels last."""
    return " ".join([*"BHWLPQ"[: x.ndim - 1], "C"])


@torch.library.impl("vmamba::onednn_linear", "CPU")
def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check_linear(x, weight, bias)
    return onednn_linear(x, weight, bias)


@torch.library.impl("vmamba::onednn_branch", "CPU")
def _onednn_branch(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weights: list[Tensor],
    biases: list[Tensor | None],
    residual: Tensor | None,
) -> Tensor:
    _check_branch(x, norm_weight, norm_bias, weights, biases, residual)

    def run(tokens: Tensor, rest: Tensor | None) -> Tensor:
        tokens = F.layer_norm(tokens, norm_weight.shape, norm_weight, norm_bias, eps)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            tokens = onednn_linear(tokens, weight, bias, "gelu")
        if rest is None:
            return onednn_linear(tokens, weights[-1], biases[-1])
        return onednn_linear_add(tokens, rest, weights[-1], biases[-1])

    shape = (*x.shape[:-1], weights[-1].shape[0])
    x = x.reshape(-1, x.shape[-1])
    residual = None if residual is None else residual.reshape(-1, shape[-1])
    widest = max(x.shape[-1], *(weight.shape[0] for weight in weights))
    if len(x) * widest * x.element_size() <= LARGE:
        return run(x, residual).view(shape)
    y = x.new_empty(len(x), shape[-1])
    for first in range(0, len(x), BLOCK):
        block = slice(first, first + BLOCK)
        y[block] = run(x[block], None if residual is None else residual[block])
    return y.view(shape)


@torch.library.register_fake("vmamba::onednn_linear")  # type: ignore[untyped-decorator]
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check_linear(x, weight, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("vmamba::onednn_branch")  # type: ignore[untyped-decorator]
def _(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weights: list[Tensor],
    biases: list[Tensor | None],
    residual: Tensor | None,
) -> Tensor:
    _check_branch(x, norm_weight, norm_bias, weights, biases, residual)
    return x.new_empty((*x.shape[:-1], weights[-1].shape[0]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _sum_of_outer_products(y: Tensor, x: Tensor) -> Tensor:
    """Of tokens (T, M) and (T, C): (M, C). oneDNN is fast where the result has more columns than rows."""
    if is_known(len(x) == 0):
        return y.t() @ x
    product = torch.ops.vmamba.onednn_linear
    if y.shape[1] > x.shape[1]:
        return cast(Tensor, product(x.t(), y.t(), None).t())
    return cast(Tensor, product(y.t(), x.t(), None))


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad[-3:]
    rows = gradient.flatten(0, -2)
    return (
        torch.ops.vmamba.onednn_linear(gradient, weight.t(), None) if of_x else None,
        _sum_of_outer_products(rows, x.flatten(0, -2)) if of_weight else None,
        rows.sum(0) if of_bias else None,
    )


register_plain_derivatives("onednn_linear", F.linear, (_keep, _linear_backward))
register_plain_derivatives("onednn_branch", partial(_branch, F.linear))
torch.library.register_vmap("vmamba::onednn_linear", all_at_once(torch.ops.vmamba.onednn_linear, [0]))
torch.library.register_vmap("vmamba::onednn_branch", all_at_once(torch.ops.vmamba.onednn_branch, [0, 6]))


@register_flop_formula(torch.ops.vmamba.onednn_linear)
def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    tokens = 1
    for size in x[:-1]:
        tokens *= size
    return 2 * tokens * weight[0] * weight[1]


@register_flop_formula(torch.ops.vmamba.onednn_branch)
def _branch_flops(x: Any, norm_weight: Any, norm_bias: Any, eps: float, weights: Any, *_: Any, **__: Any) -> int:
    return sum(_linear_flops(x, weight) for weight in weights)
