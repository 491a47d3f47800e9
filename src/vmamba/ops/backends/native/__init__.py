"""The scans in C++ for the CPU: vector kernels, one pass, no copies along routes.

The kernels (``csrc``) take addresses, so this module owns their memory contract: contiguous operands of one storage
type, parameters in the accumulation type, results allocated here. Work is cut into tiles of tokens and blocks of
channels; Δ, decay, recurrence, output and the sum over routes happen while a tile is in the first-level cache. The
backward pass keeps the states at tile starts and computes the others again.

The threads are PyTorch's: as many as ``torch.get_num_threads()``, from its own OpenMP pool where it has one. What a
thread computes does not depend on how many there are, so neither do the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops.operands import (
    RoutesOperands,
    SelectiveScanGradients,
    SelectiveScanOperands,
    SS2DGradients,
    SS2DOperands,
    accumulation_dtype,
)
from vmamba.ops.routes import Route, routes

try:
    from vmamba.ops.backends.native import _native  # type: ignore[attr-defined]  # compiled
except ImportError as error:
    raise ImportError(
        f"the compiled CPU kernels are missing ({error}); "
        "reinstall vmamba where GCC or Clang is present (pip install --force-reinstall --no-deps vmamba)"
    ) from error

#: Folder of libraries for other programs than Python.
LIBRARIES = Path(_native.__file__).parent / "lib"
#: Instruction sets that this processor runs, the best first.
INSTRUCTION_SETS = tuple(_native.instruction_sets())

_STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # enum Storage in csrc
_isa = INSTRUCTION_SETS[0]


def _adopt_threads() -> bool:
    """Look for PyTorch's OpenMP runtime. Without one, the kernels start threads of their own at every call."""
    library = Path(torch.__file__).parent / "lib"
    return any(_native.adopt_openmp(str(path)) for path in sorted(library.glob("libtorch_cpu.*")))


#: Whether the kernels run on the threads of PyTorch's own pool.
SHARES_THREADS = _adopt_threads()


def describe() -> str:
    """One line about what runs: ``vmamba env`` shows it."""
    threads = "PyTorch's threads" if SHARES_THREADS else "threads of their own"
    return f"C++ kernels for {_isa} on {threads}"


def _encode(route: Route) -> int:
    return 1 * route.columns + 2 * route.backward + 4 * route.per_line


def _store(*tensors: Tensor) -> list[Tensor]:
    """Contiguous, of one storage type: the tensors' own, or the accumulation type where theirs differ."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    if device is not None:
        raise ValueError(f"the native kernels run on the CPU, the operands are on {device}")
    dtype = tensors[0].dtype
    if dtype not in _STORAGE or any(t.dtype != dtype for t in tensors):
        dtype = accumulation_dtype(tensors[0].dtype)
    return [t.to(dtype).contiguous() for t in tensors]


def _parameters(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype).contiguous() for t in tensors]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


# --------------------------------------------------------------------------------------------------------------------
# Sequences.


def _sequence_sizes(u: Tensor, A: Tensor, B: Tensor) -> list[int]:
    return [*u.shape, A.shape[1], B.shape[1]]


def selective_scan(operands: SelectiveScanOperands) -> tuple[Tensor, Tensor]:
    """See `vmamba.ops.selective_scan`; B and C are ``(B, G, N, L)`` here. Returns y like u and the last state."""
    u, delta, A, B, C, D, delta_bias, delta_softplus, _ = operands
    out_dtype, dtype = u.dtype, accumulation_dtype(u.dtype)
    u, delta, B, C = _store(u, delta, B, C)
    rate, skip, bias = _parameters(dtype, A, D, delta_bias)
    y = torch.empty(u.shape, dtype=dtype)
    last = torch.empty(*u.shape[:2], A.shape[1], dtype=dtype)
    _native.selective_scan(
        _isa,
        _STORAGE[u.dtype],
        torch.get_num_threads(),
        delta_softplus,
        _sequence_sizes(u, A, B),
        _addresses([u, delta, rate, B, C, skip, bias]),
        y.data_ptr(),
        last.data_ptr(),
    )
    return y.to(out_dtype), last


def selective_scan_backward(dy: Tensor, dlast: Tensor, operands: SelectiveScanOperands) -> SelectiveScanGradients:
    """Gradients for (u, delta, A, B, C, D, delta_bias), in the accumulation dtype."""
    u, delta, A, B, C, D, delta_bias, delta_softplus, _ = operands
    dtype = accumulation_dtype(u.dtype)
    u, delta, B, C, dy = _store(u, delta, B, C, dy)
    rate, skip, bias, dlast_ = _parameters(dtype, A, D, delta_bias, dlast)
    du, ddelta, dA, dB, dC = (torch.empty(t.shape, dtype=dtype) for t in (u, delta, A, B, C))
    dD, dbias = (
        torch.empty((u.shape[1],), dtype=dtype) for _ in range(2)
    )  # operators may not return views of one buffer
    _native.selective_scan_backward(
        _isa,
        _STORAGE[u.dtype],
        torch.get_num_threads(),
        delta_softplus,
        _sequence_sizes(u, A, B),
        _addresses([u, delta, rate, B, C, skip, bias]),
        dy.data_ptr(),
        _addresses([dlast_])[0],
        _addresses([du, ddelta, dA, dB, dC, dD, dbias]),
    )
    return du, ddelta, dA, dB, dC, dD, dbias


# --------------------------------------------------------------------------------------------------------------------
# Images.


def ss2d_scan(operands: SS2DOperands) -> Tensor:
    """See `vmamba.ops.ss2d_scan`."""
    x, dbc, dt_weight, A, D, dt_bias, pattern, _ = operands
    out_dtype, dtype = x.dtype, accumulation_dtype(x.dtype)
    x, dbc = _store(x, dbc)
    inputs = [x, dbc, *_parameters(dtype, dt_weight, A, D, dt_bias)]
    y = torch.empty(x.shape, dtype=dtype)
    _native.ss2d_scan(
        _isa,
        _STORAGE[x.dtype],
        torch.get_num_threads(),
        [_encode(route) for route in routes(pattern)],
        [*x.shape, dt_weight.shape[2], A.shape[2]],
        _addresses(inputs),
        y.data_ptr(),
    )
    return y.to(out_dtype)


def ss2d_scan_backward(dy: Tensor, operands: SS2DOperands) -> SS2DGradients:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), in the accumulation dtype."""
    x, dbc, dt_weight, A, D, dt_bias, pattern, _ = operands
    dtype = accumulation_dtype(x.dtype)
    x, dbc, dy = _store(x, dbc, dy)
    inputs = [x, dbc, *_parameters(dtype, dt_weight, A, D, dt_bias)]
    dx, ddbc, ddt_weight, dA, dD, ddt_bias = (
        torch.empty(t.shape, dtype=dtype) for t in (x, dbc, dt_weight, A, D, dt_bias)
    )
    _native.ss2d_scan_backward(
        _isa,
        _STORAGE[x.dtype],
        torch.get_num_threads(),
        [_encode(route) for route in routes(pattern)],
        [*x.shape, dt_weight.shape[2], A.shape[2]],
        _addresses(inputs),
        dy.data_ptr(),
        _addresses([dx, ddbc, ddt_weight, dA, dD, ddt_bias]),
    )
    return dx, ddbc, ddt_weight, dA, dD, ddt_bias


# --------------------------------------------------------------------------------------------------------------------
# Images, along routes given as an order.


def scan_routes(operands: RoutesOperands) -> Tensor:
    """See `vmamba.ops.scan_routes`."""
    x, _, dt_weight, A, D, dt_bias, _, by_route = operands
    dtype = accumulation_dtype(x.dtype)
    rows, dbc, order = _with_padding(operands)
    rows, dbc = _store(rows, dbc)
    inputs = [rows, dbc, *_parameters(dtype, dt_weight, A, D, dt_bias), order]
    maps = (rows.shape[0], A.shape[0]) if by_route else (rows.shape[0],)
    y = torch.zeros(*maps, *rows.shape[1:], dtype=dtype)
    _native.scan_routes(
        _isa,
        _STORAGE[rows.dtype],
        torch.get_num_threads(),
        _routes_sizes(operands, rows, order),
        _addresses(inputs),
        y.data_ptr(),
    )
    return _without_padding(y, x).to(x.dtype).view(*maps, *x.shape[1:])


def scan_routes_backward(dy: Tensor, operands: RoutesOperands) -> SS2DGradients:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), in the accumulation dtype."""
    x, dbc, dt_weight, A, D, dt_bias, _, by_route = operands
    dtype = accumulation_dtype(x.dtype)
    rows, padded, order = _with_padding(operands)
    dy = dy.flatten(2, -2) if by_route else dy.flatten(1, -2)
    rows, padded, dy = _store(rows, padded, F.pad(dy, (0, 0, 0, rows.shape[1] - dy.shape[-2])))
    inputs = [rows, padded, *_parameters(dtype, dt_weight, A, D, dt_bias), order]
    drows, dpadded = (torch.zeros(t.shape, dtype=dtype) for t in (rows, padded))
    ddt_weight, dA, dD, ddt_bias = (torch.empty(t.shape, dtype=dtype) for t in (dt_weight, A, D, dt_bias))
    _native.scan_routes_backward(
        _isa,
        _STORAGE[rows.dtype],
        torch.get_num_threads(),
        _routes_sizes(operands, rows, order),
        _addresses(inputs),
        dy.data_ptr(),
        _addresses([drows, dpadded, ddt_weight, dA, dD, ddt_bias]),
    )
    tokens = x.shape[1:-1].numel()
    dx, ddbc = drows[:, :tokens].reshape(x.shape), dpadded[:, :tokens].reshape(dbc.shape)
    return dx, ddbc, ddt_weight, dA, dD, ddt_bias


def _with_padding(operands: RoutesOperands) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, T, D), their dbc, and the order in int64, which names a token of zeros at the end where it is -1."""
    x, dbc, order = operands.x.flatten(1, -2), operands.dbc, operands.order.to(torch.int64)
    dbc = dbc.flatten(1, operands.x.ndim - 2)
    padding = order < 0
    if padding.any():
        order = torch.where(padding, x.shape[1], order)
        x, dbc = (F.pad(t, (0, 0) * (t.ndim - 2) + (0, 1)) for t in (x, dbc))
    return x, dbc, order.contiguous()


def _without_padding(y: Tensor, x: Tensor) -> Tensor:
    return y[..., : x.shape[1:-1].numel(), :].contiguous()


def _routes_sizes(operands: RoutesOperands, rows: Tensor, order: Tensor) -> list[int]:
    batch, tokens, channels = rows.shape
    rank, states = operands.dt_weight.shape[2], operands.A.shape[2]
    flags = [order.ndim == 3, operands.has_common_rows, operands.by_route]
    return [batch, tokens, 1, channels, rank, states, *order.shape[-2:], *map(int, flags)]
