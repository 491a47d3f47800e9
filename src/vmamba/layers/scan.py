"""`SelectiveScan2d`, the scan as a layer without parameters, and the initial values of those that `SS2D` gives it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vmamba.ops import ss2d_scan

#: Initialisations: S4D-real with steps of Mamba; random; zero (VMamba, appendix).
INITS = ("mamba", "rand", "zero")


class SelectiveScan2d(nn.Module):
    """`vmamba.ops.ss2d_scan` as a layer, for hooks and counters; its operands are what it is called with.

    The parameter groups ``first … end - 1`` serve the routes of `pattern`.
    """

    def forward(
        self,
        x: Tensor,
        dbc: Tensor,
        dt_weight: Tensor,
        A: Tensor,
        D: Tensor,
        dt_bias: Tensor,
        pattern: str,
        first: int = 0,
        end: int = 4,
    ) -> Tensor:
        dbc, dt_weight, A = dbc[..., first:end, :], dt_weight[first:end], A[first:end]
        return ss2d_scan(x, dbc, dt_weight, A, D[first:end], dt_bias[first:end], pattern)


@torch.fx.wrap
def negative_exp(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), in float32 at least."""
    return -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())


@torch.no_grad()
def init_scan(A_log: Tensor, D: Tensor, dt_weight: Tensor, dt_bias: Tensor, init: str = "mamba") -> None:
    """Initial values of A, the skip D and the Δ projection, in place.

    Args:
        A_log: (…, N).
        D: Any shape.
        dt_weight: (…, R).
        dt_bias: Any shape.
        init: One of :data:`INITS`.
    """
    nn.init.ones_(D)
    if init == "mamba":
        # A = -(1 … N) (S4D-real); softplus of the bias log-uniform in [0.001, 0.1].
        states = torch.arange(1, A_log.shape[-1] + 1, dtype=torch.float32, device=A_log.device)
        A_log.copy_(states.log().expand_as(A_log))
        bound = dt_weight.shape[-1] ** -0.5
        nn.init.uniform_(dt_weight, -bound, bound)
        init_dt_bias(dt_bias)
    elif init == "rand":
        nn.init.normal_(A_log)
        nn.init.normal_(dt_weight, std=0.1)
        nn.init.normal_(dt_bias, std=0.1)
    else:
        nn.init.zeros_(A_log)
        nn.init.uniform_(dt_weight, 0, 0.1)
        nn.init.uniform_(dt_bias, 0, 0.1)


@torch.no_grad()
def init_dt_bias(dt_bias: Tensor, low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> None:
    """A bias of Δ whose softplus is log-uniform between two steps, as in Mamba; in place."""
    step = torch.empty_like(dt_bias, dtype=torch.float32).uniform_(math.log(low), math.log(high))
    step = step.exp().clamp_(min=floor)
    dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
