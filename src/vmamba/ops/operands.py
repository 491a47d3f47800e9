"""The operands of the scans: what travels together from the operator to its backends, checked in one place."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from vmamba.ops.checks import check_groups, check_operands
from vmamba.ops.routes import routes

#: Gradients for (u, delta, A, B, C, D, delta_bias). Those of an absent D or delta_bias come all the same.
SelectiveScanGradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
#: Gradients for (x, dbc, dt_weight, A, D, dt_bias).
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
