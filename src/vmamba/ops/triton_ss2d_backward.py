"""`ss2d_scan` in Triton: backward.

With the adjoint g of the state (see `reference`) and ``p[t] = a[t] g[t]``, what token t pushes to the one before it,

    p[t] = a[t] (c[t] dy[t] + p[next])          g[t] = c[t] dy[t] + p[next]

is a scan like that of the states, with the same decays, against the route. So the same kernels prepare it: Σ Δ, end
state and pushed adjoint of every segment, composed along each route in both directions. `_gradients` then computes the
states of a patch again from there, and all gradients, which nothing was kept for in the forward pass.

No atomics. A program walks over a range of channel blocks and adds up the gradient of dbc of its patch in memory that
no other program touches; ranges, and the patches' shares of the parameters' gradients, are summed afterwards in a fixed
order. The same inputs give the same gradients, bit for bit.

Bytes per token and channel, in the terms of `triton_ss2d`:

- what must move: ``3s + 2 K (R + 2N) s / D`` [7.3], x, dbc and dy in, dx and ddbc out (parameters are small);
- `_gradients` with one patch: x, dbc, dy in, dx out, ``8 K (R + 2N) S / D`` for S ranges of channels [S = 1: 2.7] out
  and in again for the sum, and ``8 K (R + N + 1) / P²`` for the parameters [1];
- with more patches, the segments: as in the forward pass, with dy read and pushed adjoints written and read [10.3].

Nothing here has been timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops import triton_ss2d
from vmamba.ops.routes import routes
from vmamba.ops.triton_tiles import (
    LOG2E,
    before,
    final,
    launch,
    load_rank,
    load_weight,
    patch_tokens,
    product_precision,
    project,
    sigmoid,
    softplus,
)

#: Programs that fill a large GPU a few times over; more would only leave more partial sums.
ENOUGH_PROGRAMS = 1024


#: Side of a patch, channels of a block, and warps: one thread for every line and channel. Larger patches spill more.
TILE = (8, 16, 4)


@triton.jit
def _add(pointer, value, mask, again):
    """Store the first value, add the next ones."""
    if again:
        value += tl.load(pointer, mask=mask, other=0.0)
    tl.store(pointer, value, mask=mask)


@triton.jit(do_not_specialize=["channels", "nothing"])
def _gradients(
    dy,
    x,
    dbc,
    weight,
    A,
    skip,
    bias,
    starts,
    pushed,
    dx,
    ddbc,
    dweight,
    dA,
    dskip,
    dbias,
    height,
    width,
    channels,
    segments,
    blocks,
    nothing,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    PER_LINE: tl.constexpr,
    SINGLE: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    RP: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """All gradients of one patch, for `blocks` blocks of channels."""
    part, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    program = image * tl.num_programs(1) + tl.program_id(1)
    x += image * height * width * channels
    dy += image * height * width * channels
    dx += image * height * width * channels
    dbc += image * height * width * (K * (R + 2 * N))
    ddbc += (part * tl.num_programs(2) + image) * height * width * (K * (R + 2 * N))
    for block in range(part * blocks, tl.minimum(part * blocks + blocks, tl.cdiv(channels, BLOCK))):
        again = block > part * blocks
        # Zero is added that the compiler does not know to be zero: it would otherwise keep r, b, c and all indices of
        # all routes, which are the same for every block, in registers from one block to the next, and spill.
        patch = tl.program_id(1) + block * nothing
        channel = block * BLOCK + tl.arange(0, BLOCK)
        exists = channel < channels
        du = tl.zeros([P, P, BLOCK], tl.float32)
        for columns in tl.static_range(2):
            if (COLUMNS if columns else ((1 << K) - 1) & ~COLUMNS) != 0:
                token, valid, segment, line_exists = patch_tokens(patch, height, width, columns, P)
                inside = valid[:, :, None] & exists[None, None, :]
                place = token[:, :, None] * channels + channel[None, None, :]
                edge = segment[:, None] * channels + channel[None, :]
                kept = line_exists[:, None] & exists[None, :]
                u = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
                v = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
                if columns:
                    du = tl.permute(du, (1, 0, 2))
                if columns == (1 if COLUMNS else 0):  # once
                    tl.store(dskip + program * channels + channel, tl.sum(tl.sum(u * v, 0), 0), mask=exists)
                for k in tl.static_range(K):
                    if ((COLUMNS >> k) & 1) == columns:
                        r, rank_place, rank_exists = load_rank(dbc, patch, height, width, k, columns, P, K, N, R, RP)
                        w = load_weight(weight, channel, channels, k, R, RP)
                        z = project(r, w, bias, channel, channels, k, P, BLOCK, PRECISION)
                        delta = tl.where(valid[:, :, None], softplus(z), 0.0)
                        weighted = delta * u
                        dweighted, ddelta = tl.zeros_like(delta), tl.zeros_like(delta)
                        for n in range(N):
                            rate = tl.load(A + (k * channels + channel) * N + n, mask=exists, other=0.0).to(tl.float32)
                            row = token * (K * (R + 2 * N)) + (k * (R + 2 * N) + R + n)
                            b = tl.load(dbc + row, mask=valid, other=0.0).to(tl.float32)
                            c = tl.load(dbc + row + N, mask=valid, other=0.0).to(tl.float32)
                            decay = tl.exp2(delta * (rate * LOG2E)[None, None, :])
                            drive, pull = weighted * b[:, :, None], v * c[:, :, None]
                            m, previous = before(decay, drive, ((BACKWARD >> k) & 1) == 1)
                            o, after = before(decay, decay * pull, ((BACKWARD >> k) & 1) == 0)
                            if not SINGLE:
                                offset = ((image * K + k) * N + n) * segments * channels
                                previous += m * tl.load(starts + offset + edge, mask=kept, other=0.0)[None, :, :]
                                after += o * tl.load(pushed + offset + edge, mask=kept, other=0.0)[None, :, :]
                            elif not PER_LINE:
                                whole = tl.exp2(tl.sum(delta, 0) * (rate * LOG2E)[None, :])
                                end = final(decay * previous + drive, P, ((BACKWARD >> k) & 1) == 1)
                                _m, start = before(whole, end, ((BACKWARD >> k) & 1) == 1)
                                previous += m * start[None, :, :]
                                end = final(decay * (after + pull), P, ((BACKWARD >> k) & 1) == 0)
                                _m, start = before(whole, end, ((BACKWARD >> k) & 1) == 0)
                                after += o * start[None, :, :]
                            carried, adjoint = decay * previous, pull + after
                            _add(ddbc + row + N, tl.sum(v * (carried + drive), 2), valid, again)
                            _add(ddbc + row, tl.sum(adjoint * weighted, 2), valid, again)
                            dweighted += adjoint * b[:, :, None]
                            through_decay = adjoint * carried
                            ddelta += through_decay * rate[None, None, :]
                            tl.store(
                                dA + ((program * K + k) * channels + channel) * N + n,
                                tl.sum(tl.sum(through_decay * delta, 0), 0),
                                mask=exists,
                            )
                        du += dweighted * delta
                        du += v * tl.load(skip + k * channels + channel, mask=exists, other=0.0).to(tl.float32)
                        dz = tl.where(valid[:, :, None], (ddelta + dweighted * u) * sigmoid(z), 0.0)
                        tl.store(dbias + (program * K + k) * channels + channel, tl.sum(tl.sum(dz, 0), 0), mask=exists)
                        dz = tl.reshape(dz, (P * P, BLOCK))
                        dr = tl.dot(dz, tl.trans(w), input_precision=GRADIENT)
                        _add(ddbc + rank_place, dr, rank_exists, again)
                        r, _place, _exists = load_rank(dbc, patch, height, width, k, columns, P, K, N, R, RP)
                        dw = tl.dot(tl.trans(r.to(tl.float32)), dz, input_precision=GRADIENT)
                        rank = tl.arange(0, RP)
                        tl.store(
                            dweight + ((program * K + k) * channels + channel)[None, :] * R + rank[:, None],
                            dw,
                            mask=exists[None, :] & (rank < R)[:, None],
                        )
                        tl.debug_barrier()  # keeps the loads of the next route where they are: registers are scarce
        tl.store(dx + place, du.to(dx.dtype.element_ty), mask=inside)
        tl.debug_barrier()  # what was added to ddbc is read again by other threads of this program


def ss2d_scan_backward(
    dy: Tensor, x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients for (x, dbc, dt_weight, A, D, dt_bias), the first of x's dtype, the others float32; not for float64."""
    dy, x, dbc, dt_weight, A, D, dt_bias = (t.contiguous() for t in (dy, x, dbc, dt_weight, A, D, dt_bias))
    batch, height, width, channels = x.shape
    side, block, warps = TILE
    chosen = triton_ss2d.constants(x, dbc, dt_weight, A, pattern) | {"P": side, "BLOCK": block}
    patches = triton.cdiv(height, chosen["P"]) * triton.cdiv(width, chosen["P"])
    starts, pushed, segments = x, x, 0
    if patches > 1:
        starts, pushed, segments = triton_ss2d.segment_states(
            dy, x, dbc, dt_weight, A, dt_bias, pattern, warps, **chosen
        )
    blocks = triton.cdiv(channels, chosen["BLOCK"])
    parts = min(blocks, triton.cdiv(ENOUGH_PROGRAMS, patches * batch))
    per_part = triton.cdiv(blocks, parts)
    parts = triton.cdiv(blocks, per_part)

    def partial(count: int, *shape: int) -> Tensor:
        return x.new_empty((count, *shape), dtype=torch.float32)

    programs, routes_ = patches * batch, chosen["K"]
    dx = torch.empty_like(x)
    ddbc = partial(parts, *dbc.shape)
    dweight, dA = partial(programs, *dt_weight.shape), partial(programs, *A.shape)
    dskip, dbias = partial(programs, channels), partial(programs, routes_, channels)
    launch(
        _gradients,
        (parts, patches, batch),
        (
            *(dy, x, dbc, dt_weight, A, D, dt_bias, starts, pushed),
            *(dx, ddbc, dweight, dA, dskip, dbias),
            *(height, width, channels, segments, per_part, 0),
        ),
        warps,
        PER_LINE=routes(pattern)[0].per_line,
        SINGLE=patches == 1,
        GRADIENT=product_precision(x.dtype),
        **chosen,
    )
    return dx, ddbc.sum(0), dweight.sum(0), dA.sum(0), dskip.sum(0).repeat(routes_, 1), dbias.sum(0)
