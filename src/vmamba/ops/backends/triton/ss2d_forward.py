"""`ss2d_scan` in Triton: forward.

The image is cut into square patches of P × P tokens. Every line of a patch is a *segment* of a row route, every column
a segment of a column route, so one program that holds a patch for BLOCK channels serves all routes: it reads the patch
once per orientation, and writes the sum over the routes once.

- An image of one patch (up to 16 × 16 tokens, 8 × 8 where the rank is large: stages 3 and 4 at 224²) is one kernel,
  `_outputs`, in which the states go from line to line.
- A larger one takes three: `_segment_ends` computes Σ Δ and the end state, from a zero start, of every segment;
  `_segment_starts` composes them along each route into start states; `_outputs` scans every segment from there.

Bytes per token and channel with s-byte storage, N states, rank R, K = 4 routes, D channels (s = 2, N = 1, stage 1 of
``vmamba_tiny_s1l8`` at 224², R = 6, D = 96, in brackets):

- what must move: ``2s + K (R + 2N) s / D`` [4.7], x and dbc in, y out;
- `_outputs` with one patch: exactly that, dbc once more per channel block from the caches;
- with more: `_segment_ends` reads x and dbc [2.7] and writes ``4 K (1 + N) / P`` [2]; `_segment_starts` reads that and
  writes ``4 K N / P`` [3]; `_outputs` reads x, dbc and the starts and writes y [5.7]. In all [13.4], 2.9 × the least.

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton.launch import launch, product_precision
from vmamba.ops.backends.triton.tiles import (
    LOG2E,
    RANKS,
    before,
    final,
    flat_tokens,
    in_tile,
    line_starts,
    patch_tokens,
    program,
    project,
    softplus,
    states,
    through,
)
from vmamba.ops.routes import routes

#: Numbers that no load profits from: kernels are not compiled again for some of them.
SIZES = ("height", "width", "last_channel", "segments")
#: Segments that `_segment_starts` composes at a time, at most: steps × lines.
CHAIN = (16, 16)


@triton.jit
def _state(
    A, dbc, token, channel, channels, segments, image, exists, k, n, K: tl.constexpr, N: tl.constexpr, R: tl.constexpr
):
    """Of state n on route k: rate of decay (base 2), where b of the tokens lies (c is N behind), and its segments."""
    rate = tl.load(A + (k * channels + channel) * N + n, mask=exists, other=0.0).to(tl.float32) * LOG2E
    row = dbc + token * (K * (R + 2 * N)) + (k * (R + 2 * N) + R + n)
    return rate[None, None, :], row, ((image * K + k) * N + n) * segments * channels


@triton.jit(do_not_specialize=SIZES)
def _segment_ends(
    dy,
    x,
    dbc,
    weight,
    A,
    bias,
    sums,
    ends,
    pushed,
    height,
    width,
    last_channel,
    segments,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    ADJOINT: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Σ Δ (B, K, G, D) and end state (B, K, N, G, D) of every segment, from a zero start.

    With ADJOINT also what the segment, visited in the opposite direction, pushes to the one before: see
    `ss2d_scan_backward`.

    Bytes: x and r, b of dbc in, ``s + K (R + N) s / D``, Σ Δ and ends out, ``4 K (1 + N) / P``; with ADJOINT dy and c
    as well in, ``2s + K (R + 2N) s / D``, and the pushed out, ``4 K (1 + 2N) / P``. Moved once: the second orientation
    finds x and dy, the other blocks of channels find dbc, in the caches.
    """
    channels = last_channel + 1
    block, patch, image = program(tl.cdiv(channels, BLOCK), tl.cdiv(height, P) * tl.cdiv(width, P))
    channel = block * BLOCK + tl.arange(0, BLOCK)
    exists = channel < channels
    x += image * height * width * channels
    dy += image * height * width * channels
    dbc += image * height * width * (K * (R + 2 * N))
    for columns in tl.static_range(2):
        if (COLUMNS if columns else ((1 << K) - 1) & ~COLUMNS) != 0:
            token, valid, segment, line_exists = patch_tokens(patch, height, width, columns, P)
            inside = valid[:, :, None] & exists[None, None, :]
            place = in_tile(token, channel, channels, BLOCK)
            u = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            if ADJOINT:
                v = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
            place = segment[:, None] * channels + channel[None, :]
            kept = line_exists[:, None] & exists[None, :]
            for k in tl.static_range(K):
                if ((COLUMNS >> k) & 1) == columns:
                    flat, known = flat_tokens(patch, height, width, columns, 0, P)
                    z = project(flat, known, dbc, weight, bias, channel, channels, k, K, N, R, P, BLOCK, PRECISION)
                    delta = tl.where(valid[:, :, None], softplus(z), 0.0)
                    tl.store(sums + (image * K + k) * segments * channels + place, tl.sum(delta, 0), mask=kept)
                    weighted = delta * u
                    for n in range(N):
                        rate, row, offset = _state(
                            A, dbc, token, channel, channels, segments, image, exists, k, n, K, N, R
                        )
                        b = tl.load(row, mask=valid, other=0.0).to(tl.float32)
                        _a, h = through(tl.exp2(delta * rate), weighted * b[:, :, None], ((BACKWARD >> k) & 1) == 1)
                        tl.store(ends + offset + place, final(h, P, ((BACKWARD >> k) & 1) == 1), mask=kept)
                    if ADJOINT:  # in a loop of its own: registers are scarce
                        for n in range(N):
                            rate, row, offset = _state(
                                A, dbc, token, channel, channels, segments, image, exists, k, n, K, N, R
                            )
                            c = tl.load(row + N, mask=valid, other=0.0).to(tl.float32)
                            decay = tl.exp2(delta * rate)
                            _a, h = through(decay, decay * v * c[:, :, None], ((BACKWARD >> k) & 1) == 0)
                            tl.store(pushed + offset + place, final(h, P, ((BACKWARD >> k) & 1) == 0), mask=kept)


@triton.jit(do_not_specialize=SIZES)
def _segment_starts(
    sums,
    ends,
    A,
    height,
    width,
    last_channel,
    segments,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    PER_LINE: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    STEPS: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """End states in, start states out, in place: the scan over the segments of each route.

    Bytes: Σ Δ and ends in, ``4 K (1 + N) / P``, starts out, ``4 K N / P``, each moved once; Σ Δ once more for each
    further state, from the caches.
    """
    channels = last_channel + 1
    block, state, image = program(tl.cdiv(channels, BLOCK), K * N)
    channel, k, n = block * BLOCK + tl.arange(0, BLOCK), state // N, state % N
    exists = channel < channels
    columns, backward = ((COLUMNS >> k) & 1) == 1, ((BACKWARD >> k) & 1) == 1
    per_line = tl.where(columns, tl.cdiv(height, P), tl.cdiv(width, P))
    count = tl.where(columns, width, height) * per_line
    sums += (image * K + k) * segments * channels
    ends += ((image * K + k) * N + n) * segments * channels
    rate = tl.load(A + (k * channels + channel) * N + n, mask=exists, other=0.0).to(tl.float32) * LOG2E
    step, line = tl.arange(0, STEPS)[:, None], tl.arange(0, LINES)[None, :]
    is_last_line = (tl.arange(0, LINES) == LINES - 1)[:, None]
    carry = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, STEPS * LINES):
        time = first + line * STEPS + step
        place = in_tile(tl.where(backward, count - 1 - time, time), channel, channels, BLOCK)
        inside = (time < count)[:, :, None] & exists[None, None, :]
        a = tl.exp2(tl.load(sums + place, mask=inside, other=0.0) * rate[None, None, :])
        d = tl.load(ends + place, mask=inside, other=0.0)
        if PER_LINE:
            goes_on = ((time + 1) % per_line != 0)[:, :, None]
            a, d = tl.where(goes_on, a, 0.0), tl.where(goes_on, d, 0.0)
        whole_a, whole_d = through(a, d, False)
        line_a, line_d = final(whole_a, STEPS, False), final(whole_d, STEPS, False)
        m, start = before(line_a, line_d, False)
        start = tl.fma(m, carry[None, :], start)
        carry = tl.sum(tl.where(is_last_line, tl.fma(line_a, start, line_d), 0.0), 0)
        tl.store(ends + place, states(a, d, start, STEPS, False), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _outputs(
    x,
    dbc,
    weight,
    A,
    skip,
    bias,
    starts,
    y,
    height,
    width,
    last_channel,
    segments,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    PER_LINE: tl.constexpr,
    SINGLE: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sum over the routes, of one patch; with SINGLE the patch is the whole image.

    Bytes: x, dbc and starts in, ``s + K (R + 2N) s / D + 4 K N / P`` (no starts with SINGLE), y out, ``s``. Moved once:
    the second orientation finds x, the other blocks of channels find dbc, in the caches.
    """
    channels = last_channel + 1
    block, patch, image = program(tl.cdiv(channels, BLOCK), tl.cdiv(height, P) * tl.cdiv(width, P))
    channel = block * BLOCK + tl.arange(0, BLOCK)
    exists = channel < channels
    x += image * height * width * channels
    y += image * height * width * channels
    dbc += image * height * width * (K * (R + 2 * N))
    out = tl.zeros([P, P, BLOCK], tl.float32)
    for columns in tl.static_range(2):
        if (COLUMNS if columns else ((1 << K) - 1) & ~COLUMNS) != 0:
            token, valid, segment, line_exists = patch_tokens(patch, height, width, columns, P)
            inside = valid[:, :, None] & exists[None, None, :]
            place = in_tile(token, channel, channels, BLOCK)
            u = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            if columns:
                out = tl.permute(out, (1, 0, 2))
            for k in tl.static_range(K):
                if ((COLUMNS >> k) & 1) == columns:
                    flat, known = flat_tokens(patch, height, width, columns, 0, P)
                    z = project(flat, known, dbc, weight, bias, channel, channels, k, K, N, R, P, BLOCK, PRECISION)
                    delta = tl.where(valid[:, :, None], softplus(z), 0.0)
                    weighted = delta * u
                    for n in range(N):
                        rate, row, offset = _state(
                            A, dbc, token, channel, channels, segments, image, exists, k, n, K, N, R
                        )
                        b = tl.load(row, mask=valid, other=0.0).to(tl.float32)
                        decay = tl.exp2(delta * rate)
                        drive = weighted * b[:, :, None]
                        start = tl.zeros([P, BLOCK], tl.float32)
                        if not SINGLE:
                            start = tl.load(
                                starts + offset + segment[:, None] * channels + channel[None, :],
                                mask=line_exists[:, None] & exists[None, :],
                                other=0.0,
                            )
                        elif not PER_LINE:
                            start = line_starts(decay, drive, P, ((BACKWARD >> k) & 1) == 1)
                        h = tl.fma(decay, states(decay, drive, start, P, ((BACKWARD >> k) & 1) == 1), drive)
                        c = tl.load(row + N, mask=valid, other=0.0).to(tl.float32)  # not before: registers are scarce
                        out = tl.fma(c[:, :, None], h, out)
                    passed = tl.load(skip + k * channels + channel, mask=exists, other=0.0).to(tl.float32)
                    out = tl.fma(u, passed[None, None, :], out)
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


def constants(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, pattern: str) -> dict[str, Any]:
    """The constants that the kernels are specialised for, without the tile."""
    chosen = routes(pattern)
    return {
        "COLUMNS": sum(route.columns << k for k, route in enumerate(chosen)),
        "BACKWARD": sum(route.backward << k for k, route in enumerate(chosen)),
        "K": len(chosen),
        "N": A.shape[2],
        "R": dt_weight.shape[2],
        "PRECISION": product_precision(dbc.dtype),
    }


def tile(height: int, width: int, rank: int) -> tuple[dict[str, int], int]:
    """Side of a patch and channels of a block, and warps: one thread for every line and channel.

    Beside a large rank (in the last stage, where channels are many and tokens few) larger patches spill.
    """
    size = 8 if max(height, width) <= 8 or rank > 2 * RANKS.value else 16
    return {"P": size, "BLOCK": 16}, size // 2


def chain(ends: Tensor, sums: Tensor, A: Tensor, height: int, width: int, **constants: Any) -> None:
    """End states of segments in, (B, K, N, G, D) or (B, N, G, D), start states out, in place."""
    segments, channels = sums.shape[-2:]
    (steps, limit), lines = CHAIN, 2
    while lines < limit and lines * steps < segments:
        lines *= 2
    launch(
        _segment_starts,
        (triton.cdiv(channels, 16) * constants["K"] * constants["N"] * sums.shape[0],),
        (sums, ends, A, height, width, channels - 1, segments),
        lines // 2,
        STEPS=steps,
        LINES=lines,
        BLOCK=16,
        **constants,
    )


def segment_states(
    dy: Tensor | None,
    x: Tensor,
    dbc: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    dt_bias: Tensor,
    pattern: str,
    warps: int,
    **chosen: Any,
) -> tuple[Tensor, Tensor, int]:
    """Start state of every segment, (B, K, N, G, D), what its end is pushed (given dy), and G."""
    batch, height, width, channels = x.shape
    across, down = triton.cdiv(width, chosen["P"]), triton.cdiv(height, chosen["P"])
    segments = max(height * across, width * down)
    sums = x.new_empty((batch, chosen["K"], segments, channels), dtype=torch.float32)
    starts = x.new_empty((batch, chosen["K"], chosen["N"], segments, channels), dtype=torch.float32)
    pushed = starts if dy is None else torch.empty_like(starts)
    launch(
        _segment_ends,
        (triton.cdiv(channels, chosen["BLOCK"]) * down * across * batch,),
        (
            x if dy is None else dy,
            x,
            dbc,
            dt_weight,
            A,
            dt_bias,
            sums,
            starts,
            pushed,
            height,
            width,
            channels - 1,
            segments,
        ),
        warps,
        ADJOINT=dy is not None,
        **chosen,
    )
    names = ("COLUMNS", "K", "N", "P")
    common = {name: chosen[name] for name in names} | {"PER_LINE": routes(pattern)[0].per_line}
    chain(starts, sums, A, height, width, BACKWARD=chosen["BACKWARD"], **common)
    if dy is not None:
        opposite = ~chosen["BACKWARD"] & ((1 << chosen["K"]) - 1)
        chain(pushed, sums, A, height, width, BACKWARD=opposite, **common)
    return starts, pushed, segments


def ss2d_scan(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str) -> Tensor:
    """See `vmamba.ops.ss2d_scan`; not for float64."""
    x, dbc, dt_weight, A, D, dt_bias = (t.contiguous() for t in (x, dbc, dt_weight, A, D, dt_bias))
    batch, height, width, channels = x.shape
    sizes, warps = tile(height, width, dt_weight.shape[2])
    chosen = constants(x, dbc, dt_weight, A, pattern) | sizes
    patches = triton.cdiv(height, chosen["P"]) * triton.cdiv(width, chosen["P"])
    y = torch.empty_like(x)
    starts, segments = y, 0
    if patches > 1:
        starts, _, segments = segment_states(None, x, dbc, dt_weight, A, dt_bias, pattern, warps, **chosen)
    launch(
        _outputs,
        (triton.cdiv(channels, chosen["BLOCK"]) * patches * batch,),
        (x, dbc, dt_weight, A, D, dt_bias, starts, y, height, width, channels - 1, segments),
        warps,
        PER_LINE=routes(pattern)[0].per_line,
        SINGLE=patches == 1,
        **chosen,
    )
    return y
