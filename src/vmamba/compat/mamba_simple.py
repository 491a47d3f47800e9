"""`Mamba`: the one-dimensional block of ``mamba_ssm.modules.mamba_simple``."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops import selective_scan


class Mamba(nn.Module):
    """Mamba's block on sequences, (B, L, d_model) → (B, L, d_model) (Gu and Dao, "Mamba", 2023, figure 3).

    Constructor, entries of the state dict, start values and inference cache are those of ``mamba_ssm``, so that its
    checkpoints load; the scan is `vmamba.ops.selective_scan`.

    Args:
        d_model: Channels.
        d_state: State size N.
        d_conv: Width of the causal convolution.
        expand: Inner channels D as a multiple of `d_model`.
        dt_rank: Rank R of the Δ projection; ``"auto"`` is ``ceil(d_model / 16)``.
        dt_min: Least Δ at the start.
        dt_max: Largest Δ at the start.
        dt_init: ``"random"`` or ``"constant"`` start of the Δ projection.
        dt_scale: Its scale.
        dt_init_floor: Δ is at least this at the start.
        conv_bias: Give the convolution a bias.
        bias: Give the two projections a bias.
        use_fast_path: Accepted and not needed.
        layer_idx: Key of this layer in the inference cache.
        device: Where to create the parameters.
        dtype: Their dtype; `A_log` and `D` are float32.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx

        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, **factory)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias, **factory)
        self.activation = "silu"
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, **factory)
        self.dt_proj = nn.Linear(self.dt_rank, inner, **factory)
        self._reset_dt_proj(dt_init, dt_scale, dt_min, dt_max, dt_init_floor)
        states = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(states.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner, device=device))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined] # read by training scripts
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **factory)

    @torch.no_grad()
    def _reset_dt_proj(self, init: str, scale: float, low: float, high: float, floor: float) -> None:
        """Weights of variance R^-1; the softplus of the bias log-uniform in [low, high]."""
        bound = self.dt_rank**-0.5 * scale
        if init == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        elif init == "random":
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        else:
            raise ValueError(f"Mamba: dt_init must be 'random' or 'constant', got {init!r}")
        bias = self.dt_proj.bias
        step = torch.empty_like(bias, dtype=torch.float32).uniform_(math.log(low), math.log(high)).exp().clamp(floor)
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        bias._no_reinit = True  # type: ignore[attr-defined] # read by training scripts

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Run on a sequence, or on the next token where a cache is under way.

        Args:
            hidden_states: (B, L, d_model).
            inference_params: An object with `seqlen_offset` and `key_value_memory_dict`, as ``mamba_ssm`` passes it:
                the states after this call are kept in it under `layer_idx`.

        Returns:
            (B, L, d_model).
        """
        conv_state, ssm_state = None, None
        if inference_params is not None:
            conv_state, ssm_state = self._get_states_from_cache(inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, conv_state, ssm_state)[0]

        length = hidden_states.shape[1]
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)  # (B, D, L)
        if conv_state is not None:
            conv_state.copy_(F.pad(x, (self.d_conv - length, 0)))  # the last d_conv inputs; cuts where there are more
        x = self.act(self.conv1d(x)[..., :length])
        delta, B, C = self._projections(x.transpose(1, 2))
        y, last = selective_scan(
            x,
            delta.transpose(1, 2),
            self._rates(),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
        )
        if ssm_state is not None:
            ssm_state.copy_(last)
        return self.out_proj(y.transpose(1, 2))

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next token alone.

        Args:
            hidden_states: (B, 1, d_model).
            conv_state: The last `d_conv` inputs of the convolution, (B, D, d_conv); moved on in place.
            ssm_state: State, (B, D, N); moved on in place.

        Returns:
            (B, 1, d_model), and the two states.
        """
        if hidden_states.shape[1] != 1:
            raise ValueError(f"Mamba.step takes one token at a time, got {hidden_states.shape[1]}")
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)  # (B, D)
        conv_state.copy_(torch.cat([conv_state[..., 1:], x.unsqueeze(-1).to(conv_state.dtype)], dim=-1))
        x = (conv_state * self.conv1d.weight.squeeze(1)).sum(-1)
        if self.conv1d.bias is not None:
            x = x + self.conv1d.bias
        x = self.act(x).to(hidden_states.dtype)
        delta, B, C = self._projections(x)
        step = F.softplus(delta.float() + self.dt_proj.bias.float()).unsqueeze(-1)  # (B, D, 1)
        state = ssm_state * torch.exp(step * self._rates()) + step * x.unsqueeze(-1) * B.unsqueeze(1)
        ssm_state.copy_(state)
        y = (state * C.unsqueeze(1)).sum(-1) + self.D * x
        y = (y * F.silu(z)).to(hidden_states.dtype)
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Δ before its bias, B and C of tokens (…, D)."""
        low_rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return F.linear(low_rank, self.dt_proj.weight), B, C  # the bias is added in float32, by the scan

    def _rates(self) -> Tensor:
        A_log = self.A_log
        return -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Zero states for `step`: (B, D, d_conv) and (B, D, N)."""
        conv, scan = self.conv1d.weight, self.dt_proj.weight
        return (
            conv.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype or conv.dtype),
            scan.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype or scan.dtype),
        )

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.layer_idx is None:
            raise ValueError("Mamba needs layer_idx to keep its states in a cache")
        cache: dict[int, tuple[Tensor, Tensor]] = inference_params.key_value_memory_dict
        if self.layer_idx not in cache:
            cache[self.layer_idx] = self.allocate_inference_cache(batch_size, 1)
        states = cache[self.layer_idx]
        if initialize_states:
            for state in states:
                state.zero_()
        return states
