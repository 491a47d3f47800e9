"""Letting `torch.compile` see the Triton kernels of an operator that has other implementations as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.export._trace import custom_triton_ops_decomposition_disabled as is_exporting

from vmamba.ops.backend import select

_TRACED = (Tensor, FakeTensor, FunctionalTensor)


def show_kernels(operator: Any, run: Callable[..., Any]) -> None:
    """Put what `run` launches into compiled graphs, in the place of the operator.

    Only on devices where the Triton backend answers, and not in exported programs, which pick their implementation
    where they run. This is how ``torch.library.triton_op`` works, which is for operators that are nothing but Triton.

    Args:
        operator: What ``torch.library.custom_op`` returned.
        run: Its implementation.
    """

    def trace(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [t for t in args if isinstance(t, Tensor)]
        device = tensors[0].device
        shown = device.type in ("cuda", "xpu") and not is_exporting() and all(kind in _TRACED for kind in types)
        # Not in float64, which the Triton backend leaves to PyTorch: thousands of small operations.
        shown = shown and not any(t.dtype == torch.float64 for t in tensors)
        if shown and select(device).name == "triton":
            with mode:
                return run(*args, **kwargs)
        return mode.__torch_dispatch__(op, types, args, kwargs)

    operator.register_torch_dispatch(FunctionalTensorMode, trace)
