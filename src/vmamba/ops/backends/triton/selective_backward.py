"""`selective_scan` in Triton: backward.

As in `ss2d_scan_backward`, what every chunk pushes to the one before is prepared like its end state, and
`_chunk_gradients` computes the states of a chunk again and all gradients. No atomics: what the chunks and blocks of
channels contribute is summed afterwards in a fixed order.

Bytes per token and channel, in the terms of `selective_scan`: at least ``5s + 4 N s / E`` (u, Δ, B, C, dy in, their
gradients out); moved with several chunks are ``8s + 4 N s / E + 16 N / BLOCK``. Nothing here has been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton.launch import launch
from vmamba.ops.backends.triton.selective_forward import block_of, chunk_states, chunk_tokens, edges, step_size
from vmamba.ops.backends.triton.tiles import LOG2E, softplus_slope, states, through

#: Size of a tile, largest block of channels, and warps: one thread for every line and channel. Larger tiles spill.
TILE = (8, 16, 4)


@triton.jit
def _chunk_gradients(
    dy,
    dlast,
    u,
    delta,
    A,
    b_,
    c_,
    skip,
    bias,
    starts,
    pushed,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dskip,
    dbias,
    last_token,
    last_channel,
    per_group,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SINGLE: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All gradients of one chunk for one block of channels; those of B and C as sums over the block.

    Bytes: u, Δ, dy, B, C, starts and pushed in, ``3s + 2 N s / E + 8 N / P²``; du and dΔ out, ``2s``, dB and dC of the
    block, ``8 N / BLOCK``, and the parameters' shares, ``(4 N + 8) / P²``. Moved once; B and C for every block of
    channels, from the caches.
    """
    length, channels = last_token + 1, last_channel + 1
    block, chunk, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    blocks, chunks = tl.num_programs(0), tl.num_programs(1)
    program = sequence * chunks + chunk
    channel = block * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    group = sequence * (channels // per_group) + block * BLOCK // per_group
    time, place, exists = chunk_tokens(chunk, length, channel, channels, P)
    place += sequence * channels * length
    step = step_size(delta, bias, place, exists, channel, channels, HAS_BIAS, SOFTPLUS)
    x = tl.load(u + place, mask=exists, other=0.0).to(tl.float32)
    v = tl.load(dy + place, mask=exists, other=0.0).to(tl.float32)
    weighted = step * x
    dweighted, dstep = tl.zeros_like(step), tl.zeros_like(step)
    for n in range(N):
        rate = tl.load(A + channel * N + n, mask=known, other=0.0).to(tl.float32)
        row = (group * N + n) * length + time
        b = tl.load(b_ + row, mask=time < length, other=0.0).to(tl.float32)
        c = tl.load(c_ + row, mask=time < length, other=0.0).to(tl.float32)
        decay = tl.exp2(step * (rate * LOG2E)[None, None, :])
        drive, pull = weighted * b[:, :, None], v * c[:, :, None]
        at_end = channel < tl.where(chunk == chunks - 1, channels, 0)
        push = tl.load(dlast + (sequence * channels + channel) * N + n, mask=at_end, other=0.0).to(tl.float32)
        carry = tl.zeros([BLOCK], tl.float32)
        if not SINGLE:
            offset = ((sequence * N + n) * chunks + chunk) * channels + channel
            carry = tl.load(starts + offset, mask=known, other=0.0)
            push += tl.load(pushed + offset, mask=known, other=0.0)
        row = ((sequence * blocks + block) * N + n) * length + time
        a, h = through(decay, drive, False)
        start, _end = edges(a, h, carry, P, False)
        carried = decay * states(decay, drive, start, P, False)
        tl.store(dC + row, tl.sum(v * (carried + drive), 2), mask=time < length)
        tl.debug_barrier()  # the states before the adjoints: registers are scarce
        a, h = through(decay, decay * pull, True)
        end, _first = edges(a, h, push, P, True)
        adjoint = pull + states(decay, decay * pull, end, P, True)
        tl.store(dB + row, tl.sum(adjoint * weighted, 2), mask=time < length)
        dweighted = tl.fma(adjoint, b[:, :, None], dweighted)
        through_decay = adjoint * carried
        dstep = tl.fma(through_decay, rate[None, None, :], dstep)
        dA_n = tl.sum(tl.sum(through_decay * step, 0), 0)
        tl.store(dA + (program * channels + channel) * N + n, dA_n, mask=known)
    dx = dweighted * step
    if HAS_SKIP:
        dx = tl.fma(v, tl.load(skip + channel, mask=known, other=0.0).to(tl.float32)[None, None, :], dx)
    dstep = tl.fma(dweighted, x, dstep)
    if SOFTPLUS:
        dstep *= softplus_slope(step)
    dstep = tl.where(exists, dstep, 0.0)
    tl.store(du + place, dx.to(du.dtype.element_ty), mask=exists)
    tl.store(ddelta + place, dstep.to(ddelta.dtype.element_ty), mask=exists)
    tl.store(dskip + program * channels + channel, tl.sum(tl.sum(v * x, 0), 0), mask=known)
    tl.store(dbias + program * channels + channel, tl.sum(tl.sum(dstep, 0), 0), mask=known)


def selective_scan_backward(
    dy: Tensor,
    dlast: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (u, delta, A, B, C, D, delta_bias), the first two of their own dtypes. Not for float64."""
    dy, dlast, u, delta, A, B, C = (t.contiguous() for t in (dy, dlast, u, delta, A, B, C))
    skip, bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
    (size, max_block, warps), (batch, channels, length) = TILE, u.shape
    groups, state_size = B.shape[1:3]
    block, chunks = block_of(max_block, channels // groups), triton.cdiv(length, size * size)
    starts, pushed = chunk_states(dy, dlast, u, delta, A, B, C, bias, delta_softplus, TILE)

    def partial(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=torch.float32)

    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dA, dskip, dbias = (partial(batch * chunks, channels, *rest) for rest in ((state_size,), (), ()))
    dB, dC = (partial(batch, channels // block, state_size, length) for _ in range(2))
    launch(
        _chunk_gradients,
        (channels // block, chunks, batch),
        (
            *(dy, dlast, u, delta, A, B, C),
            *(A if skip is None else skip, A if bias is None else bias),
            *(starts, pushed, du, ddelta, dA, dB, dC, dskip, dbias),
            *(length - 1, channels - 1, channels // groups),
        ),
        warps,
        HAS_SKIP=skip is not None,
        HAS_BIAS=bias is not None,
        SOFTPLUS=delta_softplus,
        SINGLE=chunks == 1,
        N=state_size,
        P=size,
        BLOCK=block,
    )
    dB, dC = (t.unflatten(1, (groups, -1)).sum(2) for t in (dB, dC))
    return du, ddelta, dA.sum(0), dB, dC, dskip.sum(0), dbias.sum(0)
