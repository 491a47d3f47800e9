"""`on_cpu`: networks that write ``.cuda()`` into their code, on machines without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def on_cpu() -> Iterator[None]:
    """Keep everything on the CPU inside a ``with`` block: ``cuda`` as a device means ``cpu``.

    ``x.cuda()``, ``module.cuda()``, ``x.to("cuda")``, ``torch.zeros(2, device="cuda")``, ``torch.cuda.device(0)`` would
    end in an error without a GPU. For the thread that enters it.
    """
    usual = torch.cuda.device
    torch.cuda.device = _NoDevice  # type: ignore[misc,assignment]
    try:
        with _CudaMeansCPU():
            yield
    finally:
        torch.cuda.device = usual  # type: ignore[misc]


class _CudaMeansCPU(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.cuda:
            return args[0]
        if func is Tensor.to:
            args = [args[0], *map(_cpu, args[1:])]
        return func(
            *args, **{name: _cpu(value) if name == "device" else value for name, value in (kwargs or {}).items()}
        )


def _cpu(argument: Any) -> Any:
    """The CPU in the place of a GPU: ``"cuda:1"``, ``torch.device("cuda")``, its number."""
    is_gpu = (
        (isinstance(argument, str) and argument.startswith("cuda"))
        or (isinstance(argument, torch.device) and argument.type == "cuda")
        or (isinstance(argument, int) and not isinstance(argument, bool))
    )
    return torch.device("cpu") if is_gpu else argument


class _NoDevice:
    """``torch.cuda.device`` where there is none to choose."""

    def __init__(self, device: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass
