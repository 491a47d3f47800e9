"""The functions of ``mamba_ssm.ops.selective_scan_interface`` and of VMamba's ``selective_scan`` package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops import selective_scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`vmamba.ops.selective_scan` with the arguments of ``mamba_ssm``."""
    return selective_scan(
        u, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus,
        return_last_state=return_last_state,
    )  # fmt: skip


def selective_scan_v1_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> Tensor:
    """`vmamba.ops.selective_scan` with the arguments of VMamba's package; `nrows` changes no result."""
    y = selective_scan(u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=delta_softplus)
    assert isinstance(y, Tensor)
    return y


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same as a loop over the tokens in plain PyTorch, to compare with; float32 inside, or float64 for float64 u.

    For complex A (D, N) the state is complex, B and C by token hold real and imaginary parts in turns, (B, N, 2L) or
    (B, G, N, 2L), and twice the real part of ``Σ C h`` is the output.
    """
    dtype, channels = u.dtype, u.shape[1]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, step = u.to(real), delta.to(real)
    if delta_bias is not None:
        step = step + delta_bias.to(real)[:, None]
    if delta_softplus:
        step = F.softplus(step)

    def by_token(t: Tensor) -> Tensor:
        """B or C as (B or 1, D or 1, N, L or 1)."""
        if t.ndim == 2:
            return t[None, :, :, None]
        t = t.to(real)
        t = torch.view_as_complex(t.unflatten(-1, (-1, 2))) if A.is_complex() else t
        return t.unsqueeze(1) if t.ndim == 3 else t.repeat_interleave(channels // t.shape[1], dim=1)

    drive = (step * x).unsqueeze(2) * by_token(B)  # (B, D, N, L)
    readout = by_token(C).expand(-1, -1, -1, x.shape[2])
    state = torch.zeros_like(drive[..., 0])
    outputs = []
    # unbind: the gradient of one slice of a sequence is as long as the sequence
    for step_t, drive_t, readout_t in zip(step.unbind(-1), drive.unbind(-1), readout.unbind(-1), strict=True):
        state = torch.exp(step_t[:, :, None] * A) * state + drive_t
        y = (state * readout_t).sum(-1)
        outputs.append(2 * y.real if y.is_complex() else y)
    out = torch.stack(outputs, dim=2)
    if D is not None:
        out = out + D.to(real)[:, None] * x
    if z is not None:
        out = out * F.silu(z.to(real))
    out = out.to(dtype)
    return (out, state) if return_last_state else out


def selective_scan_v1_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`selective_scan_ref` with the arguments of VMamba's package."""
    y = selective_scan_ref(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    assert isinstance(y, Tensor)
    return y


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba's block between its two projections, and the second of them.

    Args:
        xz: Features and gate, (B, 2D, L).
        conv1d_weight: Causal depthwise convolution, (D, 1, width).
        conv1d_bias: (D,).
        x_proj_weight: (R + 2N, D); only R rows are used where B and C are given.
        delta_proj_weight: (D, R).
        out_proj_weight: (dim, D).
        out_proj_bias: (dim,).
        A: (D, N), real.
        B: In a form of `selective_scan`; None: projected from the features.
        C: Likewise.
        D: Skip, (D,).
        delta_bias: (D,).
        B_proj_bias: Added to the projected B, (N,).
        C_proj_bias: Added to the projected C, (N,).
        delta_softplus: Apply softplus to delta.
        checkpoint_lvl: Accepted and not needed.
        b_rms_weight: RMSNorm of B, (N,).
        c_rms_weight: RMSNorm of C, (N,).
        dt_rms_weight: RMSNorm of delta, (D,).
        b_c_dt_rms_eps: Its ε.

    Returns:
        (B, L, dim).
    """
    y = mamba_inner_fn_no_out_proj(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, delta_softplus, checkpoint_lvl, b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps,
    )  # fmt: skip
    return F.linear(y.transpose(1, 2), out_proj_weight.to(y.dtype), _like(out_proj_bias, y))


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """`mamba_inner_fn` without its last projection, as Vision Mamba uses it: (B, D, L)."""
    if A.is_complex():
        raise TypeError("mamba_inner_fn: A must be real, got a complex tensor")
    rank, states, length = delta_proj_weight.shape[1], A.shape[1], xz.shape[-1]
    x, z = xz.chunk(2, dim=1)
    x = F.conv1d(x, conv1d_weight, conv1d_bias, padding=conv1d_weight.shape[-1] - 1, groups=x.shape[1])
    x = F.silu(x[..., :length])
    projected = F.linear(x.transpose(1, 2), x_proj_weight)  # (B, L, R + 2N)
    delta = F.linear(projected[..., :rank], delta_proj_weight)

    def state_projection(given: Tensor | None, own: Tensor, bias: Tensor | None, norm: Tensor | None) -> Tensor:
        if given is not None:
            return given
        own = own if bias is None else own + bias.to(own.dtype)
        return _rms_norm(own, norm, b_c_dt_rms_eps).transpose(1, 2)

    B = state_projection(B, projected[..., rank : rank + states], B_proj_bias, b_rms_weight)
    C = state_projection(C, projected[..., -states:], C_proj_bias, c_rms_weight)
    delta = _rms_norm(delta, dt_rms_weight, b_c_dt_rms_eps).transpose(1, 2)
    y = selective_scan(x, delta, A, B, C, D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
    assert isinstance(y, Tensor)
    return y


def _rms_norm(t: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return t if weight is None else F.rms_norm(t, t.shape[-1:], weight.to(t.dtype), eps)


def _like(t: Tensor | None, other: Tensor) -> Tensor | None:
    return None if t is None else t.to(other.dtype)
