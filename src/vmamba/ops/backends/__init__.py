"""The backends that compute the scans: a table, asked in order.

A backend is a module of this package and a row of :data:`BACKENDS`. The module has the functions of
:class:`Implementation`, and raises ImportError with the reason where it cannot run. The operators of `vmamba.ops` ask
when they *run*, not when they are traced: a compiled or exported graph holds the operator, and the machine that
executes it decides. Only a backend asked for by name with `use_backend` is written into compiled graphs, so that code
compiled for one backend, in this process or a cached one, never answers for another.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from vmamba.errors import OptionError
from vmamba.ops.operands import SelectiveScanGradients, SelectiveScanOperands, SS2DGradients, SS2DOperands
from vmamba.ops.private_torch import constant_when_compiled, is_exporting, is_known


class Implementation(Protocol):
    """The functions that the module of a backend provides; for their meaning see `vmamba.ops`.

    Operands have been checked. Gradients may come in the accumulation dtype; the operators cast them.
    """

    def describe(self) -> str:
        """One line about what runs: ``vmamba env`` shows it."""

    def selective_scan(self, operands: SelectiveScanOperands) -> tuple[Tensor, Tensor]:
        """Output, of u's dtype, and last state (B, D, N), of the accumulation dtype."""

    def selective_scan_backward(
        self, dy: Tensor, dlast: Tensor, operands: SelectiveScanOperands
    ) -> SelectiveScanGradients: ...

    def ss2d_scan(self, operands: SS2DOperands) -> Tensor:
        """Output, of x's dtype."""

    def ss2d_scan_backward(self, dy: Tensor, operands: SS2DOperands) -> SS2DGradients: ...


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        name: Of the module and for `use_backend`.
        description: For people.
        devices: Device types that it answers for unasked; None for any.
        plain: PyTorch's own operations and nothing else.
        traced: Compiled graphs hold the kernels that it launches, not the operators.
    """

    name: str
    description: str
    devices: tuple[str, ...] | None
    plain: bool = False
    traced: bool = False


_TABLE = (
    Backend("triton", "Triton kernels for GPUs", ("cuda", "xpu"), traced=True),  # cuda is ROCm's name, too
    Backend("native", "C++ kernels for the CPU", ("cpu",)),
    Backend("chunked", "portable PyTorch, any device", None, plain=True),
    Backend("reference", "the definition, a loop over the tokens; slow", (), plain=True),
)

#: Every backend by name, the fastest first.
BACKENDS = {backend.name: backend for backend in _TABLE}


class Choice(NamedTuple):
    """A backend and the reason why it answers."""

    name: str
    reason: str

    def load(self) -> Implementation:
        """The backend's module."""
        module, problem = _import(self.name)
        if module is None:
            raise OptionError(f"backend {self.name!r} is unavailable: {problem}")
        return module


# One for the process, not per thread: autograd runs the backward of CUDA operators in threads of its own.
_requested: Choice | None = None
_automatic: dict[str, Choice] = {}  # by device type
_decomposed = False


@cache
def _import(name: str) -> tuple[Implementation | None, str | None]:
    """Module of a backend, or None and the reason."""
    try:
        return cast(Implementation, importlib.import_module(f"vmamba.ops.backends.{name}")), None
    except ImportError as error:
        return None, str(error)


def unavailable(name: str) -> str | None:
    """Why a backend cannot run in this process; None if it can."""
    return _import(name)[1]


def requested() -> str | None:
    """Name of the backend asked for with `use_backend`; None where the machine that runs an operator chooses."""
    return None if _requested is None or is_exporting() else _requested.name


def is_plain() -> bool:
    """True if `use_backend` asks for PyTorch's own operations: no operator may use kernels of ours then."""
    return _requested is not None and BACKENDS[_requested.name].plain


def select(device: torch.device, name: str | None = None) -> Choice:
    """The backend that answers for tensors on a device, and why.

    Args:
        device: Of the operands.
        name: A backend asked for by name, which comes before the one of `use_backend`.

    Raises:
        OptionError: If there is no backend of that name.
    """
    if name is not None:
        return _named(name)
    if _requested is not None:
        return _requested
    return _first_available(device.type)


def _named(name: str) -> Choice:
    if name not in BACKENDS:
        raise OptionError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return Choice(name, "asked for by name")


@constant_when_compiled
def _first_available(device_type: str) -> Choice:
    """The first row of the table that serves a type of device; asked once for each."""
    choice = _automatic.get(device_type)
    if choice is None:
        rows = [row.name for row in _TABLE if row.devices is None or device_type in row.devices]
        available = [name for name in rows if unavailable(name) is None]  # never empty: PyTorch is always there
        missing = rows[: rows.index(available[0])]
        choice = Choice(available[0], "")
        reasons = [choice.load().describe(), *(f"{name} is unavailable: {unavailable(name)}" for name in missing)]
        choice = _automatic[device_type] = choice._replace(reason="; ".join(reasons))
    return choice


def implementation(features: Tensor, name: str | None = None) -> Implementation:
    """The module that computes a scan: that of `select`, or `chunked` for an empty batch, which no kernel is asked for.

    Args:
        features: An operand; its first dimension is the batch.
        name: A backend asked for by name.
    """
    choice = select(features.device, name)
    return _named("chunked").load() if is_known(features.shape[0] == 0) else choice.load()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make one backend answer inside a ``with`` block, for the whole process.

    With ``"chunked"`` or ``"reference"`` all operators use PyTorch's own operations, the pointwise ones too. A gradient
    comes from the backend that computed the output.

    Args:
        name: One of :data:`BACKENDS`.

    Raises:
        OptionError: If there is no such backend, or it cannot run here.

    Example:
        >>> import vmamba
        >>> model, image = vmamba.create_model("vmamba_pico").eval(), torch.rand(1, 3, 32, 32)
        >>> with use_backend("reference"):  # the definition
        ...     truth = model(image)
        >>> torch.testing.assert_close(model(image), truth)
    """
    global _requested
    choice = _named(name)
    choice.load()
    before, _requested = _requested, choice
    try:
        yield
    finally:
        _requested = before


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
    """True if the scans are to be traced as plain PyTorch operations."""
    return _decomposed
