"""Which implementation of the scans answers, and why.

The operators of `vmamba.ops` call `select` when they *run*, not when they are traced: a compiled or exported graph
holds the operator, and the implementation is picked on the machine that executes it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor


class Implementation(Protocol):
    """What a backend module provides. Shapes and meaning: `vmamba.ops.selective_scan`, `vmamba.ops.ss2d_scan`.

    Backward functions return gradients in the accumulation dtype; the operators cast them.
    """

    def selective_scan(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> tuple[Tensor, Tensor]: ...

    def selective_scan_backward(
        self,
        dy: Tensor,
        dlast: Tensor,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]: ...

    def ss2d_scan(
        self, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
    ) -> Tensor: ...

    def ss2d_scan_backward(
        self, dy: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Choice:
    """A backend and the reason why it answers."""

    name: str
    reason: str

    def load(self) -> Implementation:
        return cast(Implementation, importlib.import_module(f"vmamba.ops.backends.{self.name}"))


#: Every backend and what it is, the fastest first.
BACKENDS = {
    "triton": "Triton kernels for GPUs",
    "native": "C++ kernels for the CPU",
    "chunked": "portable PyTorch, any device",
    "reference": "the definition, a loop over the tokens; slow",
}

# One for the process, not per thread: autograd runs the backward of CUDA operators in threads of its own.
_forced: str | None = None
_decomposed = False


@cache
def unavailable(name: str) -> str | None:
    """Why a backend cannot run in this process; None if it can."""
    try:
        Choice(name, "").load()
    except ImportError as error:
        return str(error)
    return None


def select(device: torch.device) -> Choice:
    """The backend that answers for tensors on `device`, and why."""
    if _forced is not None:
        return Choice(_forced, "asked for with use_backend")
    if device.type in ("cuda", "xpu"):  # cuda is ROCm's name too
        problem = unavailable("triton")
        if problem is None:
            from vmamba.ops.backends import triton  # installed, as it turned out

            return Choice("triton", triton.describe())
        return Choice("chunked", f"runs everywhere; the Triton kernels do not: {problem}")
    if device.type != "cpu":
        return Choice("chunked", f"runs everywhere; nothing faster is available for {device.type}")
    problem = unavailable("native")
    if problem is None:
        from vmamba.ops.backends import native  # built, as it turned out

        return Choice("native", native.describe())
    return Choice("chunked", f"runs everywhere; {problem}")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make one backend answer inside a ``with`` block, for the whole process.

    Args:
        name: One of :data:`BACKENDS`.

    Raises:
        ValueError: If there is no such backend.
        RuntimeError: If it cannot run here.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    if (problem := unavailable(name)) is not None:
        raise RuntimeError(f"backend {name!r} is unavailable: {problem}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextmanager
def decomposed() -> Iterator[None]:
    """Trace the plain PyTorch operations of the chunked scans instead of the operators, inside a ``with`` block.

    For programs that run where this package is not installed: ``torch.export.export`` inside the block gives a graph of
    standard operators, for a fixed image size and any batch size. For inference only.
    """
    global _decomposed
    before, _decomposed = _decomposed, True
    try:
        yield
    finally:
        _decomposed = before


def is_decomposed() -> bool:
    """Whether the scans are to be traced as plain PyTorch operations."""
    return _decomposed
