"""`selective_scan` in Triton: forward.

A sequence is cut into chunks of P × P tokens, each a tile of P lines of P steps. `_chunk_ends` computes Σ Δ and the end
state of every chunk, the scan over the chunks is that over the segments of an image, and `_chunk_outputs` starts from
its result. A sequence of one chunk needs only that.

Bytes per token and channel with s-byte storage and B and C in groups of E channels: at least ``3s + 2 N s / E``
(u, Δ, B, C in, y out); moved with several chunks are ``5s + 3 N s / E``, because u, Δ and B are read twice. Nothing
here has been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton import ss2d_forward as ss2d_kernels
from vmamba.ops.backends.triton.launch import launch
from vmamba.ops.backends.triton.tiles import (
    LOG2E,
    before,
    final,
    softplus,
    through,
)

#: Size of a tile, largest block of channels, and warps: one thread for every line and channel.
TILE = (16, 16, 8)


@triton.jit
def chunk_tokens(chunk, length, channel, channels, P: tl.constexpr):
    """Time [P steps, P lines], offsets in (D, L), and which of them exist."""
    time = chunk * (P * P) + tl.arange(0, P)[None, :] * P + tl.arange(0, P)[:, None]
    exists = (time < length)[:, :, None] & (channel < channels)[None, None, :]
    return time, channel[None, None, :] * length + time[:, :, None], exists


@triton.jit
def step_size(delta, bias, place, exists, channel, channels, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr):
    """Δ; zero, which leaves the state alone, for tokens that do not exist."""
    z = tl.load(delta + place, mask=exists, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, None, :]
    if SOFTPLUS:
        z = softplus(z)
    return tl.where(exists, z, 0.0)


@triton.jit
def edges(a, h, carry, P: tl.constexpr, reverse: tl.constexpr):
    """State before every line of a tile, and after the last, from the state before the first."""
    whole, end = final(a, P, reverse), final(h, P, reverse)
    m, start = before(whole, end, reverse)
    start = tl.fma(m, carry[None, :], start)
    is_last = (tl.arange(0, P) == (0 if reverse else P - 1))[:, None]
    return start, tl.sum(tl.where(is_last, tl.fma(whole, start, end), 0.0), 0)


@triton.jit
def _chunk_ends(
    dy,
    dlast,
    u,
    delta,
    A,
    b_,
    c_,
    bias,
    sums,
    ends,
    pushed,
    last_token,
    last_channel,
    per_group,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    ADJOINT: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Σ Δ (B, C, D) and end state (B, N, C, D) of every chunk; with ADJOINT also what it pushes to the one before.

    Bytes: u, Δ and B in, ``2s + N s / E``, with ADJOINT dy and C as well, ``3s + 2 N s / E``; the results are
    ``4 (1 + N) / P²`` and less than twice that. Moved once; B and C for every block of channels, from the caches.
    """
    length, channels = last_token + 1, last_channel + 1
    block, chunk, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(1)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    u += sequence * channels * length
    dy += sequence * channels * length
    group = sequence * (channels // per_group) + block * BLOCK // per_group
    time, place, exists = chunk_tokens(chunk, length, channel, channels, P)
    step = step_size(delta + sequence * channels * length, bias, place, exists, channel, channels, HAS_BIAS, SOFTPLUS)
    weighted = step * tl.load(u + place, mask=exists, other=0.0).to(tl.float32)
    zero = tl.zeros([BLOCK], tl.float32)
    tl.store(sums + (sequence * chunks + chunk) * channels + channel, tl.sum(tl.sum(step, 0), 0), mask=known)
    if ADJOINT:
        v = tl.load(dy + place, mask=exists, other=0.0).to(tl.float32)
    for n in range(N):
        rate = tl.load(A + channel * N + n, mask=known, other=0.0).to(tl.float32)
        row = (group * N + n) * length + time
        b = tl.load(b_ + row, mask=time < length, other=0.0).to(tl.float32)
        decay = tl.exp2(step * (rate * LOG2E)[None, None, :])
        a, h = through(decay, weighted * b[:, :, None], False)
        offset = ((sequence * N + n) * chunks + chunk) * channels + channel
        _start, end = edges(a, h, zero, P, False)
        tl.store(ends + offset, end, mask=known)
        if ADJOINT:
            c = tl.load(c_ + row, mask=time < length, other=0.0).to(tl.float32)
            a, h = through(decay, decay * v * c[:, :, None], True)
            inside = channel < tl.where(chunk == chunks - 1, channels, 0)
            carry = tl.load(dlast + (sequence * channels + channel) * N + n, mask=inside, other=0.0).to(tl.float32)
            _start, end = edges(a, h, carry, P, True)
            tl.store(pushed + offset, end, mask=known)


@triton.jit
def _chunk_outputs(
    u,
    delta,
    A,
    b_,
    c_,
    skip,
    bias,
    starts,
    y,
    last,
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
    """y (B, D, L) and the last state (B, D, N).

    Bytes: u, Δ, B, C and starts in, ``2s + 2 N s / E + 4 N / P²``, y out, ``s``. Moved once; B and C for every block of
    channels, from the caches.
    """
    length, channels = last_token + 1, last_channel + 1
    block, chunk, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    chunks = tl.num_programs(1)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    group = sequence * (channels // per_group) + block * BLOCK // per_group
    time, place, exists = chunk_tokens(chunk, length, channel, channels, P)
    place += sequence * channels * length
    step = step_size(delta, bias, place, exists, channel, channels, HAS_BIAS, SOFTPLUS)
    x = tl.load(u + place, mask=exists, other=0.0).to(tl.float32)
    weighted = step * x
    out = tl.zeros([P, P, BLOCK], tl.float32)
    if HAS_SKIP:
        out += x * tl.load(skip + channel, mask=known, other=0.0).to(tl.float32)[None, None, :]
    for n in range(N):
        rate = tl.load(A + channel * N + n, mask=known, other=0.0).to(tl.float32)
        row = (group * N + n) * length + time
        b = tl.load(b_ + row, mask=time < length, other=0.0).to(tl.float32)
        c = tl.load(c_ + row, mask=time < length, other=0.0).to(tl.float32)
        a, h = through(tl.exp2(step * (rate * LOG2E)[None, None, :]), weighted * b[:, :, None], False)
        carry = tl.zeros([BLOCK], tl.float32)
        if not SINGLE:
            offset = ((sequence * N + n) * chunks + chunk) * channels + channel
            carry = tl.load(starts + offset, mask=known, other=0.0)
        start, end = edges(a, h, carry, P, False)
        out = tl.fma(c[:, :, None], tl.fma(a, start[None, :, :], h), out)
        tl.store(
            last + (sequence * channels + channel) * N + n,
            end,
            mask=channel < tl.where(chunk == chunks - 1, channels, 0),
        )
    tl.store(y + place, out.to(y.dtype.element_ty), mask=exists)


def block_of(max_block: int, per_group: int) -> int:
    """Channels of a block: all of one group."""
    while per_group % max_block:
        max_block //= 2
    return max_block


def chunk_states(
    dy: Tensor | None,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    tile: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """State before every chunk, (B, N, C, D), and what its end is pushed (given dy); unset for a single chunk."""
    batch, channels, length = u.shape
    (size, max_block, warps), state_size, per_group = tile, A.shape[1], channels // B.shape[1]
    chunks, block = triton.cdiv(length, size * size), block_of(max_block, per_group)
    starts = u.new_empty((batch, state_size, chunks, channels), dtype=torch.float32)
    pushed = starts if dy is None else torch.empty_like(starts)
    if chunks == 1:
        return starts, pushed
    sums = u.new_empty((batch, chunks, channels), dtype=torch.float32)
    launch(
        _chunk_ends,
        (channels // block, chunks, batch),
        (
            *(u if dy is None else dy, starts if dlast is None else dlast, u, delta, A, B, C),
            *(A if delta_bias is None else delta_bias, sums, starts, pushed, length - 1, channels - 1, per_group),
        ),
        warps,
        HAS_BIAS=delta_bias is not None,
        SOFTPLUS=delta_softplus,
        ADJOINT=dy is not None,
        N=state_size,
        P=size,
        BLOCK=block,
    )
    route = {"PER_LINE": False, "COLUMNS": 0, "K": 1, "N": state_size, "P": size}  # one row of chunks
    ss2d_kernels.chain(starts, sums, A, 1, chunks * size, BACKWARD=0, **route)
    if dy is not None:
        ss2d_kernels.chain(pushed, sums, A, 1, chunks * size, BACKWARD=1, **route)
    return starts, pushed


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """See `vmamba.ops.selective_scan`; B and C are ``(B, G, N, L)`` here. Not for float64."""
    u, delta, A, B, C = (t.contiguous() for t in (u, delta, A, B, C))
    skip, bias = (None if t is None else t.contiguous() for t in (D, delta_bias))
    (size, max_block, warps), (batch, channels, length) = TILE, u.shape
    chunks, per_group = triton.cdiv(length, size * size), channels // B.shape[1]
    block = block_of(max_block, per_group)
    starts, _ = chunk_states(None, None, u, delta, A, B, C, bias, delta_softplus, TILE)
    y = torch.empty_like(u)
    last = u.new_empty((batch, channels, A.shape[1]), dtype=torch.float32)
    launch(
        _chunk_outputs,
        (channels // block, chunks, batch),
        (
            *(u, delta, A, B, C, A if skip is None else skip, A if bias is None else bias),
            *(starts, y, last, length - 1, channels - 1, per_group),
        ),
        warps,
        HAS_SKIP=skip is not None,
        HAS_BIAS=bias is not None,
        SOFTPLUS=delta_softplus,
        SINGLE=chunks == 1,
        N=A.shape[1],
        P=size,
        BLOCK=block,
    )
    return y, last
