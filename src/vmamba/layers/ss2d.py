"""`SS2D`: the two-dimensional selective scan between its projections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.layers.activation import activation
from vmamba.layers.call import call, convolve
from vmamba.layers.layout import check_tokens
from vmamba.layers.out_norm import OUT_NORMS
from vmamba.layers.scan import INITS, SelectiveScan2d, init_scan, negative_exp

torch.fx.wrap("negative_exp")  # as in its own module

_ROUTES = 4

#: Scan patterns of a layer.
SCANS = ("cross", "unidirectional", "bidirectional", "cascade")


class SS2D(nn.Module):
    """in_proj → (split off gate) → depthwise conv → activation → scan → out_norm → (× gate) → out_proj.

    Maps tokens (B, H, W, dim) to (B, H, W, dim) (VMamba, figure 3). Parameters of the scan, with D inner channels,
    K = 4 routes, state size N and rank R: ``x_proj.weight`` (K(R+2N), D), ``dt_proj_weight`` (K, D, R),
    ``dt_proj_bias`` (K, D), ``A_log`` (K, D, N) with ``A = -exp(A_log)``, ``D`` (K, D).

    Args:
        dim: Channels.
        d_state: State size N.
        ssm_ratio: Inner channels D as a multiple of `dim`.
        dt_rank: Rank R of the Δ projection; ``"auto"`` is ``ceil(dim / 16)``.
        act: Activation after the convolution, and of the gate: ``"silu"``, ``"gelu"``, ``"relu"`` or ``"sigmoid"``.
        conv: Kernel size of the depthwise convolution, odd; 0 for none.
        conv_bias: Give it a bias.
        scan: ``"cross"``, ``"unidirectional"``, ``"bidirectional"`` (see `vmamba.ops.routes`) or ``"cascade"``: rows,
            then columns of the result.
        gate: Multiply the normalised scan by a gate, as Mamba does.
        gate_act: Activate the gate.
        out_norm: What follows the scan: ``"layernorm"``, ``"none"``, ``"dwconv3x3"``, ``"layernorm_dwconv3x3"``,
            ``"softmax"`` (over tokens) or ``"sigmoid"``.
        out_act: GELU after `out_norm`.
        init: Initial A, D and Δ: ``"mamba"`` (S4D-real), ``"rand"`` or ``"zero"``.
        device: Where to create the parameters.
        dtype: Their dtype.

    Raises:
        ValueError: For an impossible option, or, when called, for another layout than (B, H, W, dim).

    Example:
        >>> SS2D(64)(torch.randn(2, 14, 20, 64)).shape
        torch.Size([2, 14, 20, 64])
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        dt_rank: int | str = "auto",
        act: str = "silu",
        conv: int = 3,
        conv_bias: bool = False,
        scan: str = "cross",
        gate: bool = False,
        gate_act: bool = True,
        out_norm: str = "layernorm",
        out_act: bool = False,
        init: str = "mamba",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, choices in (("scan", scan, SCANS), ("out_norm", out_norm, OUT_NORMS), ("init", init, INITS)):
            if value not in choices:
                raise ValueError(f"SS2D: {name} must be one of {', '.join(choices)}, got {value!r}")
        inner = int(ssm_ratio * dim)
        rank = math.ceil(dim / 16) if isinstance(dt_rank, str) else dt_rank
        if min(dim, d_state, inner, rank) < 1 or conv < 0 or (conv and conv % 2 == 0):
            raise ValueError(
                "SS2D: dim, d_state, ssm_ratio · dim and dt_rank must be at least 1 and conv odd or 0, got "
                f"dim={dim}, d_state={d_state}, ssm_ratio={ssm_ratio}, dt_rank={dt_rank}, conv={conv}"
            )
        self.dim, self.pattern, self.init, self.routes = dim, scan, init, _ROUTES

        self.in_proj = nn.Linear(dim, inner * (2 if gate else 1), bias=False, device=device, dtype=dtype)
        self.conv: nn.Module = nn.Identity()
        if conv:
            self.conv = nn.Conv2d(
                inner, inner, conv, padding=conv // 2, groups=inner, bias=conv_bias, device=device, dtype=dtype
            )
        self.act = activation(act)
        self.gate_act: nn.Module | None = None
        if gate:
            self.gate_act = activation(act) if gate_act else nn.Identity()

        self.x_proj = nn.Linear(inner, _ROUTES * (rank + 2 * d_state), bias=False, device=device, dtype=dtype)
        self.dt_proj_weight = nn.Parameter(torch.empty(_ROUTES, inner, rank, device=device, dtype=dtype))
        self.dt_proj_bias = nn.Parameter(torch.empty(_ROUTES, inner, device=device, dtype=dtype))
        self.A_log = nn.Parameter(torch.empty(_ROUTES, inner, d_state, device=device, dtype=dtype))
        self.D = nn.Parameter(torch.empty(_ROUTES, inner, device=device, dtype=dtype))
        self.scan = SelectiveScan2d()

        self.normalises_maps = out_norm == "dwconv3x3"
        self.out_norm: nn.Module = OUT_NORMS[out_norm](inner, device=device, dtype=dtype)
        self.out_act = nn.GELU() if out_act else nn.Identity()
        self.out_proj = nn.Linear(inner, dim, bias=False, device=device, dtype=dtype)
        self.reset_scan_parameters()

    def reset_scan_parameters(self) -> None:
        """(Re-)initialise A, D and the Δ projection, as `init` says."""
        init_scan(self.A_log, self.D, self.dt_proj_weight, self.dt_proj_bias, self.init)

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "SS2D")
        x = self.in_proj(x) if torch.jit.is_scripting() else call(self.in_proj, x)
        gate = x
        if self.gate_act is not None:
            x, gate = x.chunk(2, dim=-1)
        if torch.jit.is_scripting():
            x = self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        else:
            x = convolve(self.conv, self.act, x)
        x = self._cascade(x) if self.pattern == "cascade" else self._scan(x, self.pattern, self._project(x), 0, 4)
        x = self.out_norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.normalises_maps else self.out_norm(x)
        x = self.out_act(x)
        if self.gate_act is not None:
            x = x * self.gate_act(gate)
        return self.out_proj(x) if torch.jit.is_scripting() else call(self.out_proj, x)

    def _cascade(self, x: Tensor) -> Tensor:
        """Rows, then columns of the result, each normalised before, since it would otherwise diverge.

        The authors add the outputs of the backward routes in the order of the visit, mirrored along the line; their
        trained cascade models depend on it. `x_proj` is called for both inputs; each needs the half of its output.
        """
        x = F.layer_norm(x, x.shape[-1:])
        dbc = self._project(x)
        x = self._scan(x, "rows", dbc, 0, 1) + self._scan(x, "rows_backward", dbc, 1, 2).flip(2)
        x = F.layer_norm(x, x.shape[-1:])
        dbc = self._project(x)
        return self._scan(x, "columns", dbc, 2, 3) + self._scan(x, "columns_backward", dbc, 3, 4).flip(1)

    def _project(self, x: Tensor) -> Tensor:
        """Low-rank Δ, B and C of every token and route: (B, H, W, D) → (B, H, W, K, R+2N)."""
        dbc = self.x_proj(x) if torch.jit.is_scripting() else call(self.x_proj, x)
        return dbc.unflatten(-1, (self.routes, -1))

    def _scan(self, x: Tensor, pattern: str, dbc: Tensor, first: int, end: int) -> Tensor:
        """Scan with the parameter groups ``first … end - 1``."""
        A = negative_exp(self.A_log)
        return self.scan(x, dbc, self.dt_proj_weight, A, self.D, self.dt_proj_bias, pattern, first, end)
