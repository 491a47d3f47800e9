"""Parts of several GPU kernels: softplus, affine maps and their scans, the patches of an image.

A *tile* is ``[P steps, P lines, BLOCK channels]`` of float32: P × P tokens, each line of them consecutive on a route.
There is one thread for every line and channel, and the steps of a line stay within a thread, so that a scan along them
needs no exchange between threads. Triton does that for loads of one channel per lane whose lines follow on each other.
So the kernels do not say what divides the number of channels: they are given the last one, which no caller, not even
TorchInductor, knows anything about. And `in_tile` says which axis comes next.

Multiply-adds are written as `tl.fma`: newer versions of Triton do not fuse them unasked.

A token's step is the affine map ``h → a h + d`` of the state. Maps compose associatively, which is all that a scan over
steps, over the lines of a tile, or over the tiles of an image needs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vmamba.ops.backends.triton.launch import INTERPRETED

LOG2E = tl.constexpr(1.4426950408889634)
WIDE = tl.constexpr(INTERPRETED)
#: Entries of r that are multiplied at a time: the least that the tensor cores take.
RANKS = tl.constexpr(16)


@triton.jit
def softplus(z):
    """log(1 + exp(z)), relative error below 5e-7: one exponential and a polynomial, which has no cancellation."""
    u = tl.exp2(-tl.abs(z) * LOG2E)
    p = tl.fma(u, -0.008539196103811264, 0.04408959671854973)
    p = tl.fma(u, p, -0.10768167674541473)
    p = tl.fma(u, p, 0.17745240032672882)
    p = tl.fma(u, p, -0.24495463073253632)
    p = tl.fma(u, p, 0.33275479078292847)
    p = tl.fma(u, p, -0.4999740421772003)
    p = tl.fma(u, p, 0.9999998211860657)  # log(1 + u) / u on [0, 1], minimax
    return tl.fma(u, p, tl.maximum(z, 0.0))


@triton.jit
def softplus_slope(y):
    """The derivative of softplus at the point where it is y, ``1 - exp(-y)``, without cancellation."""
    p = tl.fma(y, -0.2, 1.0)
    p = tl.fma(y * -0.25, p, 1.0)
    p = tl.fma(y * -0.3333333333333333, p, 1.0)
    p = tl.fma(y * -0.5, p, 1.0)
    return tl.where(y < 0.125, y * p, 1.0 - tl.exp2(-y * LOG2E))


@triton.jit
def _then(a1, d1, a2, d2):
    return a2 * a1, tl.fma(a2, d1, d2)


@triton.jit
def _then_keeping(a1, d1, m1, x1, a2, d2, m2, x2):
    """Also the map up to, not including, the last step; ``m = 1, x = 0`` for a single step."""
    return a2 * a1, tl.fma(a2, d1, d2), m2 * a1, tl.fma(m2, d1, x2)


@triton.jit
def through(a, d, reverse: tl.constexpr):
    """Composed maps from the start of axis 0 (the end, in reverse) up to and including each position."""
    return tl.associative_scan((a, d), 0, _then, reverse=reverse)


@triton.jit
def around(a, d, reverse: tl.constexpr):
    """Composed maps from the start of axis 0 (the end, in reverse) up to each position: with it, and without."""
    one, zero = tl.zeros_like(a) + 1.0, tl.zeros_like(a)
    return tl.associative_scan((a, d, one, zero), 0, _then_keeping, reverse=reverse)


@triton.jit
def before(a, d, reverse: tl.constexpr):
    """Composed maps from the start of axis 0 (the end, in reverse) up to, not including, each position."""
    _, _, m, x = around(a, d, reverse)
    return m, x


@triton.jit
def states(a, d, start, P: tl.constexpr, reverse: tl.constexpr):
    """State before each step of a tile, from the state before each line.

    The start goes in with the first step: what a line does to it need not be kept beside the states.
    """
    first = (tl.arange(0, P) == (P - 1 if reverse else 0))[:, None, None]
    start = tl.where(first, start[None, :, :], 0.0)
    _, _, _, x = tl.associative_scan(
        (a, tl.fma(a, start, d), tl.zeros_like(a) + 1.0, start), 0, _then_keeping, reverse=reverse
    )
    return x


@triton.jit
def final(t, P: tl.constexpr, reverse: tl.constexpr):
    """The last entry of axis 0 of a tile (the first, in reverse)."""
    step = tl.arange(0, P)
    return tl.sum(tl.where((step == (0 if reverse else P - 1))[:, None, None], t, 0.0), 0)


@triton.jit
def line_starts(a, d, P: tl.constexpr, reverse: tl.constexpr):
    """State before each line of a tile, from a zero start of the first."""
    a, h = through(a, d, reverse)
    _, start = before(final(a, P, reverse), final(h, P, reverse), reverse)
    return start


@triton.jit
def patch_tokens(patch, height, width, COLUMNS: tl.constexpr, P: tl.constexpr):
    """Image-order index of the tokens [P steps, P lines] of a patch, whether they exist, and their lines' segments.

    Steps run along rows, or along columns. Segment g of a route is its g-th piece of a line, in the order
    that the route visits them in forward direction.
    """
    across, down = tl.cdiv(width, P), tl.cdiv(height, P)
    top, left = patch // across * P, patch % across * P
    step, line = tl.arange(0, P)[:, None], tl.arange(0, P)[None, :]
    lines = tl.arange(0, P)
    if COLUMNS:
        h, w = top + step, left + line
        segment, exists = (left + lines) * down + patch // across, left + lines < width
    else:
        h, w = top + line, left + step
        segment, exists = (top + lines) * across + patch % across, top + lines < height
    return h * width + w, (h < height) & (w < width), segment, exists


@triton.jit
def in_tile(token, channel, channels, BLOCK: tl.constexpr):
    """Places of the channels of the tokens [P, P] of a tile, in memory of rows of `channels` entries.

    Lines are said to come in contiguous pairs, which they do not. Nothing is read or written by that, a lane holds one
    channel; but Triton spreads the axes over the threads in the order of their contiguity, and breaks the tie between
    steps and lines as its version has it (3.6 spreads the steps, 3.9 the lines).
    """
    return tl.max_contiguous(token[:, :, None] * channels + channel[None, None, :], (1, 2, BLOCK))


@triton.jit
def flat_tokens(patch, height, width, columns, backward, P: tl.constexpr):
    """The tokens of a patch in the order of a route, steps outermost, [P · P], and whether they exist.

    `columns` and `backward`, 0 or 1, may be known only when the kernel runs.
    """
    flat = backward * (P * P - 1) + (1 - 2 * backward) * tl.arange(0, P * P)
    step, line = flat // P, flat % P
    h = patch // tl.cdiv(width, P) * P + line + columns * (step - line)
    w = patch % tl.cdiv(width, P) * P + step + columns * (line - step)
    return h * width + w, (h < height) & (w < width)


@triton.jit
def load_rank(token, valid, first, dbc, k, K: tl.constexpr, N: tl.constexpr, R: tl.constexpr):
    """RANKS entries of r of route k from `first` on, [tokens, RANKS], where they lie in `dbc`, and which exist."""
    rank = first + tl.arange(0, RANKS)
    place = token[:, None] * (K * (R + 2 * N)) + (k * (R + 2 * N) + rank)[None, :]
    exists = valid[:, None] & (rank < R)[None, :]
    return tl.load(dbc + place, mask=exists, other=0.0), place, exists


@triton.jit
def load_weight(weight, channel, channels, first, k, R: tl.constexpr):
    """RANKS columns of the Δ projection of route k for a block of channels, [RANKS, BLOCK]."""
    rank = first + tl.arange(0, RANKS)
    exists = (channel < channels)[None, :] & (rank < R)[:, None]
    place = (k * channels + channel)[None, :] * R + rank[:, None]
    return tl.load(weight + place, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _product(a, b, z, PRECISION: tl.constexpr):
    """z + a b in float32; the interpreter has no products of bfloat16."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, z, input_precision=PRECISION)


@triton.jit
def project(
    token,
    valid,
    dbc,
    weight,
    bias,
    channel,
    channels,
    k,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``z = W r + β`` of route k for every token of a patch (`flat_tokens`), [P, P, BLOCK]; Δ is its softplus.

    A matrix product on the tensor cores, RANKS entries of r at a time: a large rank would fill the registers. With
    half-precision storage r is what it is and the weight goes in as the sum of two such numbers, so that nothing of it
    is lost but the last bits.
    """
    beta = tl.load(bias + k * channels + channel, mask=channel < channels, other=0.0).to(tl.float32)
    z = tl.zeros([P * P, BLOCK], tl.float32) + beta[None, :]
    for first in tl.range(0, R, RANKS, num_stages=1):
        r, _place, _exists = load_rank(token, valid, first, dbc, k, K, N, R)
        w = load_weight(weight, channel, channels, first, k, R)
        high = w.to(r.dtype)
        z = _product(r, high, z, PRECISION)
        if r.dtype != tl.float32:
            z = _product(r, (w - high.to(tl.float32)).to(r.dtype), z, PRECISION)
    return tl.reshape(z, (P, P, BLOCK))


@triton.jit
def add(pointer, value, mask, times):
    """Store the first value, add the next ones: those before which there were some `times`."""
    later = mask.to(tl.int32) * times > 0
    tl.store(pointer, value + tl.load(pointer, mask=later, other=0.0), mask=mask)


@triton.jit
def wait_for_stores(WAITS: tl.constexpr):
    """A barrier after which every thread of the program reads what any of them stored. See `launch.stores_lag`."""
    if WAITS:
        tl.inline_asm_elementwise("s_waitcnt vmcnt(0)", "=v", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()


@triton.jit
def program(first, second):
    """Number of this program on each of three axes, of which the first two have so many; the last as int64.

    Grids have one dimension, which alone may be larger than 65535.
    """
    number = tl.program_id(0)
    return number % first, number // first % second, (number // first // second).to(tl.int64)
