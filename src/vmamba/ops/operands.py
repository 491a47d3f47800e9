"""The operands of the scans: what travels together from the operator to its backends, checked in one place."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from vmamba.ops.checks import check_groups, check_operands
from vmamba.ops.private_torch import is_known
from vmamba.ops.routes import routes

#: Gradients for (u, delta, A, B, C, D, delta_bias). Those of an absent D or delta_bias come all the same.
SelectiveScanGradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
#: Gradients for (x, dbc, dt_weight, A, D, dt_bias), of `ss2d_scan` and of `scan_routes`.
SS2DGradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of state, Δ, decay and sums for features of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class SelectiveScanOperands(NamedTuple):
    """Operands of `vmamba.ops.selective_scan`, with B and C in their general form.

    Shapes: u and delta (B, D, L) · A (D, N) · B and C (B, G, N, L), G dividing D · D and delta_bias (D,) or None.
    `backend` names the backend that must answer; None leaves the choice to the machine that runs the operator.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    backend: str | None = None

    def check(self, dy: Tensor | None = None, dlast: Tensor | None = None) -> None:
        """Check dtypes, devices and shapes, also those of the gradients of output and last state.

        Raises:
            TypeError, ValueError: See `vmamba.ops.checks.check_operands`.
        """
        sizes = check_operands(
            "selective_scan",
            {
                "u": (self.u, "B D L"),
                "delta": (self.delta, "B D L"),
                "A": (self.A, "D N"),
                "B": (self.B, "B G N L"),
                "C": (self.C, "B G N L"),
                "D": (self.D, "D"),
                "delta_bias": (self.delta_bias, "D"),
                "dy": (dy, "B D L"),
                "dlast": (dlast, "B D N"),
            },
        )
        check_groups("selective_scan", "B", sizes["G"], sizes["D"])


class SS2DOperands(NamedTuple):
    """Operands of `vmamba.ops.ss2d_scan`.

    Shapes: x (B, H, W, D) · dbc (B, H, W, K, R+2N) · dt_weight (K, D, R) · A (K, D, N) · D and dt_bias (K, D).
    `backend`: see :class:`SelectiveScanOperands`.
    """

    x: Tensor
    dbc: Tensor
    dt_weight: Tensor
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    pattern: str
    backend: str | None = None

    def check(self, dy: Tensor | None = None) -> None:
        """Check pattern, dtypes, devices and shapes, also those of the gradient of the output.

        Raises:
            TypeError, ValueError: See `vmamba.ops.checks.check_operands` and `vmamba.ops.routes.routes`.
        """
        check_operands(
            "ss2d_scan",
            {
                "x": (self.x, "B H W D"),
                "dt_weight": (self.dt_weight, "K D R"),
                "A": (self.A, "K D N"),
                "D": (self.D, "K D"),
                "dt_bias": (self.dt_bias, "K D"),
                "dbc": (self.dbc, "B H W K R+2N"),
                "dy": (dy, "B H W D"),
            },
            {"K": len(routes(self.pattern))},
        )


class RoutesOperands(NamedTuple):
    """Operands of `vmamba.ops.scan_routes`.

    Shapes: x (B, H, W, D) or (B, T, D) · dbc (B, H, W, K, R+2N) or (B, T, K, R+2N), or without K · dt_weight (K, D, R)
    · A (K, D, N) · D and dt_bias (K, D) · order (K, L) or (B, K, L), integers from -1 to T - 1. `by_route`: the output
    is not summed over the routes.
    """

    x: Tensor
    dbc: Tensor
    dt_weight: Tensor
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    order: Tensor
    by_route: bool

    @property
    def has_common_rows(self) -> bool:
        """True if all routes read the same rows of dbc."""
        return self.dbc.ndim == self.x.ndim

    def check(self, dy: Tensor | None = None) -> None:
        """Check dtypes, devices and shapes, also those of the gradient of the output; not the indices of the order.

        Raises:
            TypeError, ValueError: See `vmamba.ops.scan_routes`.
        """
        grid = "H W" if getattr(self.x, "ndim", 4) == 4 else "T"
        shared = getattr(self.dbc, "ndim", 0) == getattr(self.x, "ndim", 0)
        sizes = check_operands(
            "scan_routes",
            {
                "x": (self.x, f"B {grid} D"),
                "dt_weight": (self.dt_weight, "K D R"),
                "A": (self.A, "K D N"),
                "D": (self.D, "K D"),
                "dt_bias": (self.dt_bias, "K D"),
                "dbc": (self.dbc, f"B {grid} R+2N" if shared else f"B {grid} K R+2N"),
                "dy": (dy, f"B K {grid} D" if self.by_route else f"B {grid} D"),
            },
        )
        self._check_order(sizes["B"], sizes["K"])

    def _check_order(self, batch: int, routes: int) -> None:
        order, device = self.order, self.x.device
        if not isinstance(order, Tensor) or order.dtype not in (torch.int64, torch.int32):
            kind = order.dtype if isinstance(order, Tensor) else type(order).__name__
            raise TypeError(f"scan_routes: order must be a tensor of int64 or int32, got {kind}")
        if order.device != device:
            raise ValueError(f"scan_routes: order is on {order.device}, the first operand on {device}")
        fits = order.ndim in (2, 3) and not is_known(order.shape[-2] != routes)
        if not fits or (order.ndim == 3 and is_known(order.shape[0] != batch)):
            raise ValueError(
                f"scan_routes: order must have shape (K, L) or (B, K, L) with K = {routes} and B = {batch}, "
                f"got {tuple(order.shape)}"
            )
        if is_known(order.shape[-1] == 0):
            raise ValueError("scan_routes: the routes of order are empty")

    def check_indices(self) -> None:
        """Check that the order names tokens of the image.

        Raises:
            ValueError: If it does not.
        """
        tokens = self.x.shape[1:-1].numel()
        low, high = self.order.aminmax() if self.order.numel() else (torch.tensor(-1),) * 2
        if low < -1 or high >= tokens:
            raise ValueError(f"scan_routes: order must be from -1 to {tokens - 1}, got {int(low)} to {int(high)}")
