"""SS2D: the two-dimensional selective scan as a layer."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vmamba.layers.parts import ACTIVATIONS, NORM_EPS, DepthwiseConv, Pointwise, is_watched, out_norm
from vmamba.model.config import VMambaConfig
from vmamba.ops import depthwise_silu, pointwise, ss2d_scan

# As in their own modules.
torch.fx.wrap("pointwise")
torch.fx.wrap("depthwise_silu")


class SS2D(nn.Module):
    """in_proj → (split off gate) → depthwise conv → activation → scan → out_norm → (× gate) → out_proj.

    Maps tokens (B, H, W, dim) to (B, H, W, dim) (VMamba, figure 3). Parameters of the scan, with D inner channels,
    state size N and rank R: ``x_proj`` (K(R+2N), D), ``dt_proj_weight`` (K, D, R), ``dt_proj_bias`` (K, D),
    ``A_log`` (K, D, N) with ``A = -exp(A_log)``, ``D`` (K, D).
    """

    def __init__(self, dim: int, config: VMambaConfig, **factory: Any) -> None:
        super().__init__()
        inner, rank, self.routes = config.inner_dim(dim), config.rank(dim), 4
        self.scan, self.init, self.rank, self.gated = config.scan, config.ssm_init, rank, config.gate
        self.in_proj = Pointwise(dim, inner * (2 if config.gate else 1), bias=False, **factory)
        self.conv = (
            DepthwiseConv(inner, config.ssm_conv, config.ssm_conv_bias, **factory) if config.ssm_conv else nn.Identity()
        )
        self.act = ACTIVATIONS[config.ssm_act]()
        self.gate_act = ACTIVATIONS[config.ssm_act]() if config.gate and config.gate_act else nn.Identity()
        self.x_proj = Pointwise(inner, self.routes * (rank + 2 * config.d_state), bias=False, **factory)
        self.dt_proj_weight = nn.Parameter(torch.empty(self.routes, inner, rank, **factory))
        self.dt_proj_bias = nn.Parameter(torch.empty(self.routes, inner, **factory))
        self.A_log = nn.Parameter(torch.empty(self.routes, inner, config.d_state, **factory))
        self.D = nn.Parameter(torch.empty(self.routes, inner, **factory))
        # The cascade would otherwise diverge.
        self.scan_norm = nn.LayerNorm(inner, eps=NORM_EPS, elementwise_affine=False)
        self.out_norm = out_norm(config.out_norm, inner, **factory)
        self.out_act = nn.GELU() if config.out_act else nn.Identity()
        self.out_proj = Pointwise(inner, dim, bias=False, **factory)

    @torch.no_grad()
    def reset_scan_parameters(self) -> None:
        """Start values of A, D and the Δ projection (VMamba, appendix: Mamba, random or zero initialisation)."""
        nn.init.ones_(self.D)
        if self.init == "mamba":
            # A = -(1 … N) (S4D-real); softplus of the bias log-uniform in [0.001, 0.1].
            states = torch.arange(1, self.A_log.shape[-1] + 1, dtype=torch.float32, device=self.A_log.device)
            self.A_log.copy_(states.log().expand_as(self.A_log))
            nn.init.uniform_(self.dt_proj_weight, -(self.rank**-0.5), self.rank**-0.5)
            step = torch.empty_like(self.dt_proj_bias, dtype=torch.float32).uniform_(math.log(1e-3), math.log(1e-1))
            step = step.exp().clamp_(min=1e-4)
            self.dt_proj_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        elif self.init == "rand":
            nn.init.normal_(self.A_log)
            nn.init.normal_(self.dt_proj_weight, std=0.1)
            nn.init.normal_(self.dt_proj_bias, std=0.1)
        else:
            nn.init.zeros_(self.A_log)
            nn.init.uniform_(self.dt_proj_weight, 0, 0.1)
            nn.init.uniform_(self.dt_proj_bias, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        gate = x
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
        y = self.out_act(self.out_norm(self.mix(x)))
        if self.gated:
            y = y * self.gate_act(gate)
        return self.out_proj(y)

    def mix(self, x: Tensor) -> Tensor:
        """The part that mixes tokens, convolution, activation and scan: (B, H, W, D) → (B, H, W, D)."""
        x = self._convolve(x)
        return self._cascade(x) if self.scan == "cascade" else self._scan(x, self.scan, 0, self.routes)

    def _convolve(self, x: Tensor) -> Tensor:
        """Convolution and activation, as one operator where that is faster and nobody replaced or watches a layer."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript drops this form)
            if self._fuses():
                conv = cast(DepthwiseConv, self.conv)
                return depthwise_silu(x, conv.weight, conv.bias)
        return self.act(self.conv(x))

    def _fuses(self) -> bool:
        conv, act = self.conv, self.act
        if type(conv) is not DepthwiseConv or conv.kernel_size != (3, 3) or type(act) is not nn.SiLU:
            return False
        return not (is_watched(conv) or is_watched(act) or _has_any_global_hook())

    def _cascade(self, x: Tensor) -> Tensor:
        """Rows, then columns of the result.

        The authors add the outputs of the backward routes in the order of the visit, mirrored along the line; their
        trained cascade models depend on it.
        """
        x = self.scan_norm(x)
        x = self._scan(x, "rows", 0, 1) + self._scan(x, "rows_backward", 1, 1).flip(2)
        x = self.scan_norm(x)
        return self._scan(x, "columns", 2, 1) + self._scan(x, "columns_backward", 3, 1).flip(1)

    def _scan(self, x: Tensor, pattern: str, first: int, count: int) -> Tensor:
        """Scan with `count` of the parameter groups."""
        end = first + count
        weight = self.x_proj.weight.unflatten(0, (self.routes, -1))[first:end].flatten(0, 1)
        dbc = pointwise(x, weight, None).unflatten(-1, (count, -1))
        A = _negative_exp(self.A_log[first:end])
        dt_weight, dt_bias = self.dt_proj_weight[first:end], self.dt_proj_bias[first:end]
        return ss2d_scan(x, dbc, dt_weight, A, self.D[first:end], dt_bias, pattern)


@torch.fx.wrap
def _negative_exp(A_log: Tensor) -> Tensor:
    """A = -exp(A_log), in float32 at least."""
    return -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())
