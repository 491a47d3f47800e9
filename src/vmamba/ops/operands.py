"""The operands of the scans: what travels together from the operator to its backends, checked in one place."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vmamba.ops.checks import check_groups, check_operands
from vmamba.ops.routes import routes


class SelectiveScanOperands(NamedTuple):
    """Operands of `vmamba.ops.selective_scan`, with B and C in their general form.

    Shapes: u and delta (B, D, L) · A (D, N) · B and C (B, G, N, L), G dividing D · D and delta_bias (D,) or None.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool

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
    """

    x: Tensor
    dbc: Tensor
    dt_weight: Tensor
    A: Tensor
    D: Tensor
    dt_bias: Tensor
    pattern: str

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
