"""`Mamba`: the one-dimensional block of ``mamba_ssm.modules.mamba_simple``."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops import selective_scan

#: Sets of parameters of each `bimamba_type`, by the ends of their names.
_DIRECTIONS = {"none": ("",), "v2": ("", "_b"), "v3": ("", "_b", "_s")}


class Mamba(nn.Module):
    """Mamba's block on sequences, (B, L, d_model) → (B, L, d_model) (Gu and Dao, "Mamba", 2023, figure 3).

    Constructor, entries of the state dict, start values and inference cache are those of ``mamba_ssm``, so that its
    checkpoints load; the scan is `vmamba.ops.selective_scan`. With `bimamba_type="v2"` it is the bidirectional block of
    Vision Mamba (Zhu et al., 2024): the sequence is also scanned backward with parameters of its own, ``conv1d_b``,
    ``x_proj_b``, ``dt_proj_b``, ``A_b_log``, ``D_b``, and the two outputs are summed before the last projection. With
    ``"v3"`` it is SegMamba's (Xing et al., 2024): a third scan, with ``conv1d_s`` …, goes across `nslices` slices of
    equal length, from the first token of every slice to their last.

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
        bimamba_type: ``"none"``, ``"v2"`` or ``"v3"``.
        if_divide_out: Halve the sum of the two directions.
        init_layer_scale: Start of a factor per channel of the output, `gamma`; None for no such factor.
        nslices: Slices of a sequence, for ``"v3"``.
    """

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter

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
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        nslices: int = 5,
    ) -> None:
        super().__init__()
        if bimamba_type not in _DIRECTIONS:
            raise ValueError(f"Mamba: bimamba_type must be 'none', 'v2' or 'v3', got {bimamba_type!r}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.use_fast_path, self.layer_idx, self.nslices = use_fast_path, layer_idx, nslices

        self.bimamba_type, self.if_divide_out, self.init_layer_scale = bimamba_type, if_divide_out, init_layer_scale
        self.activation = "silu"
        self.act = nn.SiLU()
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), float(init_layer_scale), **factory))

        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias, **factory)
        for suffix in _DIRECTIONS[bimamba_type]:
            conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, bias=conv_bias, **factory)
            self.add_module(f"conv1d{suffix}", conv)
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False, **factory))
            dt_proj = nn.Linear(self.dt_rank, inner, **factory)
            _reset_dt_proj(dt_proj, dt_init, dt_scale, dt_min, dt_max, dt_init_floor)
            self.add_module(f"dt_proj{suffix}", dt_proj)
            states = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
            A_log, D = nn.Parameter(states.log().repeat(inner, 1)), nn.Parameter(torch.ones(inner, device=device))
            for parameter in (A_log, D):
                parameter._no_weight_decay = True  # type: ignore[attr-defined] # read by training scripts
            self.register_parameter(f"A{suffix}_log", A_log)
            self.register_parameter(f"D{suffix}", D)
        self.out_proj = nn.Linear(inner, d_model, bias=bias, **factory)

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

        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)  # (B, D, L)
        y, last = self._mix(x, z, "")
        if conv_state is not None and ssm_state is not None:
            conv_state.copy_(
                F.pad(x, (self.d_conv - x.shape[-1], 0))
            )  # the last d_conv inputs; cuts where there are more
            ssm_state.copy_(last)
        if self.bimamba_type != "none":
            y = y + self._mix(x.flip(-1), z.flip(-1), "_b")[0].flip(-1)
            y = y / 2 if self.if_divide_out else y
        if self.bimamba_type == "v3":
            if x.shape[-1] % self.nslices:
                raise ValueError(f"Mamba: {x.shape[-1]} tokens do not make nslices = {self.nslices} equal slices")
            x, z = (t.unflatten(-1, (self.nslices, -1)).mT.flatten(-2) for t in (x, z))
            y = y + self._mix(x, z, "_s")[0].unflatten(-1, (-1, self.nslices)).mT.flatten(-2)
        out = self.out_proj(y.transpose(1, 2))
        return out if self.init_layer_scale is None else out * self.gamma

    def _mix(self, x: Tensor, z: Tensor, suffix: str) -> tuple[Tensor, Tensor]:
        """Convolution and gated scan (B, D, L) with one set of parameters; the last state (B, D, N), too."""
        dt_proj = self.get_submodule(f"dt_proj{suffix}")
        x = self.act(self.get_submodule(f"conv1d{suffix}")(x)[..., : x.shape[-1]])
        delta, B, C = self._projections(x.transpose(1, 2), suffix)
        y, last = selective_scan(
            x,
            delta.transpose(1, 2),
            _rates(self.get_parameter(f"A{suffix}_log")),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.get_parameter(f"D{suffix}"),
            z=z,
            delta_bias=cast(Tensor, dt_proj.bias),
            delta_softplus=True,
            return_last_state=True,
        )
        return y, last

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
        delta, B, C = self._projections(x, "")
        step = F.softplus(delta.float() + self.dt_proj.bias.float()).unsqueeze(-1)  # (B, D, 1)
        state = ssm_state * torch.exp(step * _rates(self.A_log)) + step * x.unsqueeze(-1) * B.unsqueeze(1)
        ssm_state.copy_(state)
        y = (state * C.unsqueeze(1)).sum(-1) + self.D * x
        y = (y * F.silu(z)).to(hidden_states.dtype)
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    def _projections(self, x: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
        """Δ before its bias, B and C of tokens (…, D)."""
        projected = self.get_submodule(f"x_proj{suffix}")(x)
        low_rank, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        weight = cast(Tensor, self.get_submodule(f"dt_proj{suffix}").weight)
        return F.linear(low_rank, weight), B, C  # the bias is added in float32, by the scan

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
        if self.bimamba_type != "none":
            raise ValueError("a bidirectional Mamba has no cache: later tokens change the output of earlier ones")
        cache: dict[int, tuple[Tensor, Tensor]] = inference_params.key_value_memory_dict
        if self.layer_idx not in cache:
            cache[self.layer_idx] = self.allocate_inference_cache(batch_size, 1)
        states = cache[self.layer_idx]
        if initialize_states:
            for state in states:
                state.zero_()
        return states


@torch.no_grad()
def _reset_dt_proj(layer: nn.Linear, init: str, scale: float, low: float, high: float, floor: float) -> None:
    """Weights of variance R^-1; the softplus of the bias log-uniform in [low, high]."""
    bound = layer.in_features**-0.5 * scale
    if init == "constant":
        nn.init.constant_(layer.weight, bound)
    elif init == "random":
        nn.init.uniform_(layer.weight, -bound, bound)
    else:
        raise ValueError(f"Mamba: dt_init must be 'random' or 'constant', got {init!r}")
    bias = layer.bias
    step = torch.empty_like(bias, dtype=torch.float32).uniform_(math.log(low), math.log(high)).exp().clamp(floor)
    bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
    bias._no_reinit = True  # type: ignore[attr-defined] # read by training scripts


def _rates(A_log: Tensor) -> Tensor:
    return -torch.exp(A_log if A_log.dtype == torch.float64 else A_log.float())
