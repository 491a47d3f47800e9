"""Derivatives of operators: reverse mode by kernels, everything else through PyTorch's own operations.

An operator's gradient is another operator, with kernels of its own. What no kernel computes is taken from the same
computation in PyTorch's operations (``plain``), which are differentiable in every mode and any number of times:
forward-mode derivatives (``torch.func.jvp``, ``torch.autograd.forward_ad``) and gradients of the gradient.
`torch.func`'s transforms nest as they do around operators of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import CustomOpDef

from vmamba.ops.private_torch import (
    HAS_AUTOGRAD_KERNELS,
    autograd_kernel,
    below_autograd,
    replace_autograd_kernel,
    unpack_dual,
)

_library = torch.library.Library("vmamba", "FRAGMENT")  # registrations live as long as it does


def register_derivatives(
    operator: CustomOpDef,
    plain: Callable[..., Any],
    backward: Callable[..., tuple[Any, ...]] | None = None,
    vmap: Callable[..., Any] | None = None,
) -> None:
    """Make an operator differentiable, in reverse and in forward mode, and give ``torch.func.vmap`` a rule.

    Args:
        operator: Its operands are tensors, Nones and constants.
        plain: The same results from the same operands, in operations of PyTorch that write to no operand.
        backward: Gradients for all operands (None for constants) from the results' gradients followed by the operands;
            by default those of `plain`.
        vmap: As for ``torch.library.register_vmap``; by default one call for each sample.
    """
    pull = backward or (lambda *arguments: _pull_back(plain, operator_results, *arguments))
    op = getattr(torch.ops.vmamba, operator._name).default
    operator_results = len(op._schema.returns)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(t if isinstance(t, Tensor) else None for t in inputs))
        ctx.constants = tuple(None if isinstance(t, Tensor) else t for t in inputs)

    def run_backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        operands = (constant if t is None else t for t, constant in zip(ctx.saved_tensors, ctx.constants, strict=True))
        of_operands = pull(*gradients, *operands)
        count = len(ctx.constants)  # without operands left at their defaults
        return (*of_operands, *[None] * count)[:count]

    operator.register_vmap(vmap or sample_by_sample(op))
    if not HAS_AUTOGRAD_KERNELS:
        operator.register_autograd(run_backward, setup_context=setup_context)
        return
    reverse_mode = autograd_kernel(op, setup_context, run_backward)

    def kernel(keyset: Any, *operands: Any) -> Any:
        if has_tangent(*operands):
            return plain(*operands)
        return reverse_mode(keyset, *operands)

    replace_autograd_kernel(_library, operator._name, kernel)


def register_plain_derivatives(
    name: str,
    plain: Callable[..., Any],
    reverse: tuple[Callable[..., None], Callable[..., tuple[Any, ...]]] | None = None,
) -> None:
    """Leave the derivatives of an operator without kernels for them to `plain`.

    Args:
        name: Within ``torch.ops.vmamba``.
        plain: The same results from the same operands, in operations of PyTorch.
        reverse: ``setup_context`` and ``backward`` as for ``torch.library.register_autograd``, differentiable
            themselves, for reverse mode; by default `plain`, too.
    """
    if not HAS_AUTOGRAD_KERNELS:
        if reverse is not None:
            torch.library.register_autograd(f"vmamba::{name}", reverse[1], setup_context=reverse[0])
        return
    op = getattr(torch.ops.vmamba, name).default
    below = below_autograd(op)
    reverse_mode = None if reverse is None else autograd_kernel(op, *reverse)

    def kernel(keyset: Any, *operands: Any) -> Any:
        leaves = chain.from_iterable(o if isinstance(o, list | tuple) else [o] for o in operands)
        tensors = [t for t in leaves if isinstance(t, Tensor)]
        if has_tangent(*tensors):
            return plain(*operands)
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
            return below(keyset, operands)
        return plain(*operands) if reverse_mode is None else reverse_mode(keyset, *operands)

    replace_autograd_kernel(_library, name, kernel)


def sample_by_sample(op: Any) -> Callable[..., Any]:
    """A rule for ``torch.func.vmap``: one call of the operator for each sample."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *operands: Any) -> tuple[Any, Any]:
        def sample(i: int, dims: Any, several: Any) -> list[Any]:
            return [
                sample(i, dim, t) if isinstance(t, list | tuple) else t if dim is None else t.select(dim, i)
                for t, dim in zip(several, dims, strict=True)
            ]

        results = [op(*sample(i, in_dims, operands)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(result) for result in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


def all_at_once(op: Any, tokens: Sequence[int]) -> Callable[..., Any]:
    """A rule for ``torch.func.vmap`` of an operator that does the same to every token: one call for all samples.

    Args:
        op: It takes tokens of any number of dimensions, and gives one tensor of tokens.
        tokens: Which of its operands are tokens. Where others differ from sample to sample, it is called for each.
    """
    one_by_one = sample_by_sample(op)

    def rule(info: Any, in_dims: tuple[Any, ...], *operands: Any) -> tuple[Any, Any]:
        others = [dim for i, dim in enumerate(in_dims) if i not in tokens]
        if any(d is not None for dim in others for d in (dim if isinstance(dim, list | tuple) else [dim])):
            return one_by_one(info, in_dims, *operands)
        stacked = list(operands)
        for i in tokens:
            if isinstance(t := operands[i], Tensor):
                stacked[i] = t.expand(info.batch_size, *t.shape) if in_dims[i] is None else t.movedim(in_dims[i], 0)
        return op(*stacked), 0

    return rule


def refuse_tangents(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, with an error instead of results without tangents where a PyTorch lacks the names for forward mode."""

    @wraps(run)
    def checked(*operands: Any) -> Any:
        try:
            with forward_ad.dual_level():  # there can be only one
                return run(*operands)
        except RuntimeError as error:
            if "Nested forward mode" not in str(error):
                raise
        raise NotImplementedError(f"{name}: no forward-mode derivative with torch {torch.__version__}")

    return run if HAS_AUTOGRAD_KERNELS else checked


def has_tangent(*operands: Any) -> bool:
    """True if forward-mode differentiation reaches an operator through one of its operands."""
    # There is only one level. It must be named: compiled code enters it without telling Python.
    return any(isinstance(t, Tensor) and unpack_dual(t, level=0).tangent is not None for t in operands)


def _pull_back(plain: Callable[..., Any], results: int, *arguments: Any) -> tuple[Any, ...]:
    """Gradients of `plain` for its operands, from those of its results, which come first."""
    gradients, operands = arguments[:results], list(arguments[results:])
    places = [i for i, operand in enumerate(operands) if isinstance(operand, Tensor) and operand.is_floating_point()]

    def of_tensors(*tensors: Tensor) -> Any:
        for i, tensor in zip(places, tensors, strict=True):
            operands[i] = tensor
        return plain(*operands)

    pull = torch.func.vjp(of_tensors, *(operands[i] for i in places))[1]
    by_place = dict(zip(places, pull(gradients if results > 1 else gradients[0]), strict=True))
    return tuple(by_place.get(i) for i in range(len(operands)))
