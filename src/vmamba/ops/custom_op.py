"""Operators with several implementations, one of them in Triton, whose kernels `torch.compile` sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from vmamba.ops.backends import BACKENDS, select, unavailable
from vmamba.ops.derivatives import refuse_tangents
from vmamba.ops.private_torch import (
    FakeTensor,
    FunctionalTensor,
    FunctionalTensorMode,
    is_exporting_triton,
    register_cache_key,
)

_TRACED = (Tensor, FakeTensor, FunctionalTensor)


def define(name: str, schema: str, run: Callable[..., Any]) -> CustomOpDef:
    """An operator ``vmamba::name`` of PyTorch that changes none of its operands.

    Compiled graphs hold what `run` launches, in the place of the operator, on devices where the Triton backend answers;
    not exported programs, which pick their implementation where they run. This is how ``torch.library.triton_op``
    works, which is for operators that are nothing but Triton.

    Args:
        name: Within ``torch.ops.vmamba``.
        schema: Operands and results.
        run: The implementation.

    Returns:
        What ``torch.library.custom_op`` returns, to register its shapes and gradient.
    """
    operator = torch.library.custom_op(f"vmamba::{name}", refuse_tangents(name, run), mutates_args=(), schema=schema)

    def trace(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [t for t in args if isinstance(t, Tensor)]
        device = tensors[0].device
        shown = device.type in ("cuda", "xpu") and not is_exporting_triton() and all(kind in _TRACED for kind in types)
        # Not in float64, which the Triton backend leaves to PyTorch: thousands of small operations.
        shown = shown and not any(t.dtype == torch.float64 for t in tensors)
        if shown and BACKENDS[select(device, _asked(args)).name].traced:
            with mode:
                return run(*args, **kwargs)
        return mode.__torch_dispatch__(op, types, args, kwargs)

    register_cache_key(f"vmamba::{name}", _Sources())
    if FunctionalTensorMode is not None:
        operator.register_torch_dispatch(FunctionalTensorMode, trace)
    return operator


def _asked(args: tuple[Any, ...]) -> str | None:
    """The backend that an operator's last operand names."""
    return next((arg for arg in args[-1:] if isinstance(arg, str) and arg in BACKENDS), None)


class _Sources:
    """The part of a compiled graph's key in PyTorch's caches that stands for the kernels of an operator.

    Looked up when asked for: importing vmamba does not import triton.
    """

    def __iter__(self) -> Iterator[Any]:
        if unavailable("triton") is None:
            from vmamba.ops.backends.triton.sources import marker

            yield from [marker] if hasattr(marker, "src") else []  # the interpreter has no sources and no caches
