"""`selective_scan`: the one-dimensional scan of Mamba as a PyTorch operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vmamba.ops.backends import Implementation, chunked, implementation, is_decomposed, requested
from vmamba.ops.checks import check_groups, check_operands
from vmamba.ops.custom_op import define
from vmamba.ops.derivatives import register_derivatives
from vmamba.ops.operands import SelectiveScanOperands, accumulation_dtype

_OPERANDS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, bool delta_softplus, "
    "str? backend=None"
)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | bool | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    nrows: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan over sequences (Gu and Dao, "Mamba", 2023, algorithm 2); drop-in for ``selective_scan_fn``.

    Operands stand in the order of ``mamba_ssm``. The order of VMamba's authors, ``(u, delta, A, B, C, D, delta_bias,
    delta_softplus, nrows)``, is understood, too: a gate has three dimensions and a bias one.

    ``h[t] = exp(Δ[t] A) h[t-1] + Δ[t] u[t] B[t]``, ``y[t] = Σ_n C[t] h[t] + D u[t]``, with ``h[-1] = 0`` and
    ``Δ = softplus(delta + delta_bias)`` (each step where asked for). State, Δ and sums are float32, or float64 for
    float64 u. Real numbers only: no kernel here scans the complex states that ``mamba_ssm`` also knows.

    Args:
        u: (B, D, L), any floating dtype.
        delta: (B, D, L).
        A: (D, N), negative for a stable recurrence.
        B: (D, N), (B, N, L) or (B, G, N, L) with G dividing D: group g serves channels ``g·D/G … (g+1)·D/G - 1``.
        C: like B, in one of the same three forms.
        D: Skip, (D,).
        z: Gate, (B, D, L): the output is multiplied by ``silu(z)``.
        delta_bias: (D,).
        delta_softplus: Apply softplus to delta.
        return_last_state: Return (output, last state) instead of the output.
        nrows: Ignored; a hint for the authors' kernels.

    Returns:
        (B, D, L) of u's dtype; with `return_last_state` also (B, D, N) of the accumulation dtype.

    Raises:
        TypeError: For an operand that is not a real floating-point tensor.
        ValueError: For shapes that do not fit, or operands on different devices.

    Example:
        >>> u, delta = torch.randn(2, 8, 100), torch.rand(2, 8, 100)
        >>> A, B, C = -torch.rand(8, 4), torch.randn(2, 4, 100), torch.randn(2, 4, 100)
        >>> selective_scan(u, delta, A, B, C, delta_softplus=True).shape
        torch.Size([2, 8, 100])
    """
    if isinstance(delta_bias, bool):  # (…, D, delta_bias, delta_softplus[, nrows])
        delta_softplus = delta_bias
        z, delta_bias = None, z
    elif isinstance(z, Tensor) and z.ndim == 1 and delta_bias is None:  # (…, D, delta_bias, delta_softplus=…)
        z, delta_bias = None, z
    for name, operand in (("A", A), ("B", B), ("C", C)):
        if isinstance(operand, Tensor) and operand.is_complex():
            raise TypeError(f"selective_scan: {name} is complex; only real states are computed, pass real A, B and C")
    sizes = check_operands(
        "selective_scan",
        {
            "u": (u, "B D L"),
            "delta": (delta, "B D L"),
            "A": (A, "D N"),
            "D": (D, "D"),
            "z": (z, "B D L"),
            "delta_bias": (delta_bias, "D"),
        },
    )
    for name, operand in (("B", B), ("C", C)):
        form = {2: "D N", 3: "B N L"}.get(getattr(operand, "ndim", 4), "B G N L")
        groups = check_operands("selective_scan", {"u": (u, "B D L"), name: (operand, form)}, sizes).get("G", 1)
        check_groups("selective_scan", name, groups, sizes["D"])

    B, C = _grouped(B, u), _grouped(C, u)
    if B.shape[1] != C.shape[1]:  # bring both to one group per channel
        B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], dim=1) for t in (B, C))
    operands = SelectiveScanOperands(u, delta, A, B, C, D, delta_bias, delta_softplus, requested())
    y, last = chunked.selective_scan(operands) if is_decomposed() else torch.ops.vmamba.selective_scan(*operands)
    if z is not None:
        y = (y * F.silu(z.to(accumulation_dtype(u.dtype)))).to(u.dtype)
    return (y, last) if return_last_state else y


def _grouped(t: Tensor, u: Tensor) -> Tensor:
    """B or C in any of its forms as (B, G, N, L)."""
    if t.ndim == 2:
        return t[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    return t.unsqueeze(1) if t.ndim == 3 else t


def _run(*arguments: Any, module: Implementation | None = None) -> tuple[Tensor, Tensor]:
    operands = SelectiveScanOperands(*arguments)
    operands.check()
    return (module or _module(operands)).selective_scan(operands)


def _run_backward(
    dy: Tensor, dlast: Tensor, *arguments: Any, module: Implementation | None = None
) -> tuple[Tensor, ...]:
    operands = SelectiveScanOperands(*arguments)
    operands.check(dy, dlast)
    grads = (module or _module(operands)).selective_scan_backward(dy, dlast, operands)
    # In the dtypes of what they belong to; those of an absent D or Δ bias come in its place, unused.
    return tuple(
        g.contiguous() if t is None else g.to(t.dtype).contiguous() for g, t in zip(grads, operands[:7], strict=True)
    )


def _module(operands: SelectiveScanOperands) -> Implementation:
    return implementation(operands.u, operands.backend)


_GRADIENTS = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"
_selective_scan = define("selective_scan", f"({_OPERANDS}) -> (Tensor, Tensor)", _run)
_selective_scan_backward = define(
    "selective_scan_backward", f"(Tensor dy, Tensor dlast, {_OPERANDS}) -> ({_GRADIENTS})", _run_backward
)


@_selective_scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    operands = SelectiveScanOperands(*arguments)
    operands.check()
    u, dtype = operands.u, accumulation_dtype(operands.u.dtype)
    state = u.new_empty((*u.shape[:2], operands.A.shape[1]), dtype=dtype)
    return torch.empty_like(u, memory_format=torch.contiguous_format), state


@_selective_scan_backward.register_fake
def _(dy: Tensor, dlast: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    operands = SelectiveScanOperands(*arguments)
    operands.check(dy, dlast)
    per_channel = operands.u.new_empty(operands.u.shape[1], dtype=accumulation_dtype(operands.u.dtype))
    return tuple(
        torch.empty_like(per_channel if t is None else t, memory_format=torch.contiguous_format) for t in operands[:7]
    )


def _backward(dy: Tensor, dlast: Tensor, *operands: Any) -> tuple[Tensor | None, ...]:
    grads = torch.ops.vmamba.selective_scan_backward(dy, dlast, *operands)
    return tuple(g if t is not None else None for g, t in zip(grads, operands[:7], strict=True))


def _vmap(gradients: int) -> Callable[..., Any]:
    """A rule for ``torch.func.vmap``: samples lie side by side as channels, which keep their parameters apart."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def as_channels(t: Any, dim: int | None, channel_dim: int) -> Any:
            if not isinstance(t, Tensor):
                return t
            t = t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            return t.movedim(0, channel_dim).flatten(channel_dim, channel_dim + 1)

        places = ((1, 1) if gradients else ()) + _CHANNEL_DIMS + (0, 0)
        merged = [as_channels(*each) for each in zip(arguments, in_dims, places[: len(arguments)], strict=True)]
        op = torch.ops.vmamba.selective_scan_backward if gradients else torch.ops.vmamba.selective_scan
        dims = _CHANNEL_DIMS if gradients else (1, 1)
        results = op(*merged)
        return tuple(t.unflatten(dim, (info.batch_size, -1)) for t, dim in zip(results, dims, strict=True)), dims

    return rule


#: Where u, delta, A, B, C, D, delta_bias and their gradients have their channels, or groups of channels.
_CHANNEL_DIMS = (1, 1, 0, 1, 1, 0, 0)

register_derivatives(_selective_scan, partial(_run, module=chunked), _backward, _vmap(gradients=0))
register_derivatives(_selective_scan_backward, partial(_run_backward, module=chunked), vmap=_vmap(gradients=2))


def scan_flops(tokens: int, channels: int, states: int, skip: bool) -> int:
    """9 per token, channel and state, one more per token and channel for the skip: the count of the VMamba paper."""
    return tokens * channels * (9 * states + skip)


@register_flop_formula(torch.ops.vmamba.selective_scan)
def _flops(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, *_: Any, **__: Any) -> int:
    batch, channels, length = u
    return scan_flops(batch * length, channels, A[1], D is not None)


@register_flop_formula(torch.ops.vmamba.selective_scan_backward, get_raw=True)
def _backward_flops(dy: Tensor, dlast: Tensor, *operands: Any, **_: Any) -> int:
    forward: int = _flops(*operands)
    return 3 * forward  # the states again, then twice the forward as for a matrix product
