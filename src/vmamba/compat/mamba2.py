"""The functions of Mamba-2 in ``mamba_ssm.ops.triton``: its scan is `selective_scan` with one rate for each head.

Dao and Gu, "Transformers are SSMs", 2024. Shapes: B batch · L tokens · H heads of P channels · G groups of heads that
share B and C · N states.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops import selective_scan


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan of Mamba-2.

    Args:
        x: (B, L, H, P).
        dt: Step of every head, (B, L, H).
        A: (H,).
        B: (B, L, G, N).
        C: Like B.
        chunk_size: Accepted and not needed.
        D: Skip, (H,) or (H, P).
        z: Gate, like x: the output is multiplied by ``silu(z)``.
        dt_bias: (H,).
        initial_states: Not served.
        seq_idx: Not served.
        cu_seqlens: Not served.
        dt_softplus: Apply softplus to dt.
        dt_limit: Limits of the step.
        return_final_states: Return the last state, too.
        return_varlen_states: Not served.

    Returns:
        (B, L, H, P); with `return_final_states` also (B, H, P, N).

    Raises:
        NotImplementedError: For initial states and several sequences in one.
    """
    if any(t is not None for t in (initial_states, seq_idx, cu_seqlens)) or return_varlen_states:
        raise NotImplementedError(
            "mamba_chunk_scan_combined: initial_states, seq_idx, cu_seqlens and return_varlen_states are not served "
            "by vmamba: install mamba_ssm"
        )
    heads, channels = x.shape[2:]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    step = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
    step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit)
    y, last = selective_scan(
        x.flatten(2).mT,
        step.mT.repeat_interleave(channels, dim=1),
        A.to(dtype).repeat_interleave(channels)[:, None].expand(-1, B.shape[3]),
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        None if D is None else (D.repeat_interleave(channels) if D.ndim == 1 else D.flatten()),
        z=None if z is None else z.flatten(2).mT,
        return_last_state=True,
    )
    y = y.mT.unflatten(2, (heads, channels))
    return (y, last.unflatten(1, (heads, channels))) if return_final_states else y


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's block after its first projection.

    Args:
        zxbcdt: Gate, features, B, C and steps, (B, L, 2·H·P + 2·G·N + H).
        conv1d_weight: Causal depthwise convolution of features, B and C, (H·P + 2·G·N, width).
        conv1d_bias: (H·P + 2·G·N,).
        dt_bias: (H,).
        A: (H,).
        D: Skip, (H,) or (H, P).
        chunk_size: Accepted and not needed.
        initial_states: Not served.
        seq_idx: Not served.
        dt_limit: Limits of the step.
        return_final_states: Return the last state, too.
        activation: Of the convolution: ``"silu"``, ``"swish"`` or None.
        rmsnorm_weight: Normalise before the last projection, (H·P,); None: gate alone.
        rmsnorm_eps: Its ε.
        outproj_weight: Last projection, (dim, H·P); None for none.
        outproj_bias: (dim,).
        headdim: P, where D is (H,).
        ngroups: G.
        norm_before_gate: Normalise, then gate; else the other way round.

    Returns:
        (B, L, dim) or (B, L, H·P); with `return_final_states` also (B, H, P, N).
    """
    heads = A.shape[0]
    channels = D.shape[1] if D.ndim == 2 else headdim
    if channels is None:
        raise ValueError("mamba_split_conv1d_scan_combined: headdim is needed where D is (H,)")
    inner = heads * channels
    mixed = conv1d_weight.shape[0]
    z, xbc, dt = zxbcdt.split([inner, mixed, heads], dim=-1)
    width = conv1d_weight.shape[1]
    xbc = F.conv1d(xbc.mT, conv1d_weight.unsqueeze(1), conv1d_bias, padding=width - 1, groups=mixed)
    xbc = xbc[..., : zxbcdt.shape[1]].mT
    xbc = xbc if activation is None else F.silu(xbc)
    x, B, C = xbc.split([inner, (mixed - inner) // 2, (mixed - inner) // 2], dim=-1)
    y, last = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, channels)), dt, A, B.unflatten(-1, (ngroups, -1)), C.unflatten(-1, (ngroups, -1)),
        chunk_size, D, None, dt_bias, initial_states, seq_idx, dt_softplus=True, dt_limit=dt_limit,
        return_final_states=True,
    )  # fmt: skip
    y = y.flatten(2)
    if rmsnorm_weight is None:
        y = y * F.silu(z)
    else:
        y = rmsnorm_fn(y, rmsnorm_weight, None, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    if outproj_weight is not None:
        y = F.linear(y.to(outproj_weight.dtype), outproj_weight, outproj_bias)
    return (y, last) if return_final_states else y


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """The next token alone.

    Args:
        state: (B, H, P, N), or without H; moved on in place.
        x: (B, H, P), or without H.
        dt: Like x.
        A: (H, P, N), or without H.
        B: (B, G, N), or without G.
        C: Like B.
        D: Skip, (H, P), or without H.
        z: Gate, like x.
        dt_bias: Like D.
        dt_softplus: Apply softplus to dt.

    Returns:
        Like x.
    """
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = F.softplus(step) if dt_softplus else step
    if state.ndim == 4:
        B, C = (t.repeat_interleave(x.shape[1] // t.shape[1], dim=1).unsqueeze(2) for t in (B, C))
    else:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    moved = state * torch.exp(step.unsqueeze(-1) * A) + (step * x).unsqueeze(-1) * B
    state.copy_(moved)
    y = (moved * C).sum(-1)
    y = y if D is None else y + D * x
    return (y if z is None else y * F.silu(z.float())).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm of groups of channels, with an optional gate (``mamba_ssm.ops.triton.layernorm_gated``).

    Args:
        hidden_size: Channels.
        eps: Added to the mean square.
        group_size: Channels that are normalised together; all by default.
        norm_before_gate: Normalise, then gate; else the other way round.
        device: Where to create the weight.
        dtype: Its dtype.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """See `rmsnorm_fn`."""
        return rmsnorm_fn(x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """``norm(x) · silu(z)``, or ``norm(x · silu(z))``, in float32; x's dtype."""
    y = x.float()
    gate = None if z is None else F.silu(z.float())
    if gate is not None and not norm_before_gate:
        y = y * gate
    size = group_size or x.shape[-1]
    y = F.rms_norm(y.unflatten(-1, (-1, size)), (size,), None, eps).flatten(-2) * weight.float()
    y = y if bias is None else y + bias.float()
    return (y * gate if gate is not None and norm_before_gate else y).to(x.dtype)
