"""The scans that `gpu.py` times: their shapes and operands, whether they are right, what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vmamba.ops import selective_scan, ss2d_scan, use_backend

#: Largest relative error (of norms) against float64: inputs are given, outputs are rounded once to the storage type,
#: and the gradients of the Δ projection are products on the tensor cores.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
NAMES = ("x", "dbc", "dt_weight", "A", "D", "dt_bias")


class WrongScanError(ValueError):
    """A scan that must not be timed; one line that says what is wrong with it."""


@dataclass(frozen=True)
class Shape:
    """A scan: tokens (batch, height, width, channels), rank of the Δ projection, states, storage."""

    label: str
    batch: int
    height: int
    width: int
    channels: int
    rank: int
    states: int = 1
    dtype: torch.dtype = torch.bfloat16

    def least_bytes(self, backward: bool) -> int:
        """What must move: x and dbc in, y out; for the backward pass x, dbc and dy in, dx and ddbc out.

        The parameters are left out: they stay in the caches.
        """
        features, projected = self.channels, 4 * (self.rank + 2 * self.states)
        values = 2 * features + projected + (3 * features + 2 * projected if backward else 0)
        return self.batch * self.height * self.width * values * self.dtype.itemsize


def operands(shape: Shape, device: str) -> list[Tensor]:
    """x, dbc, dt_weight, A, D, dt_bias; the last four in float32, as under autocast; Δ as Mamba starts with."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, generator=generator)

    tokens = (shape.batch, shape.height, shape.width)
    x = normal(*tokens, shape.channels).to(shape.dtype)
    dbc = normal(*tokens, 4, shape.rank + 2 * shape.states).to(shape.dtype)
    weight = normal(4, shape.channels, shape.rank) * (0.5 * shape.rank**-0.5)
    A = -torch.exp(0.5 * normal(4, shape.channels, shape.states))
    step = torch.rand(4, shape.channels, device=device, generator=generator)
    step = torch.exp(step * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
    return [x, dbc, weight, A, normal(4, shape.channels), step + torch.log(-torch.expm1(-step))]


def forward_and_backward(leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    """The output and the gradients of the operands."""
    y = ss2d_scan(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, dy))


def check(shape: Shape, device: str) -> dict[str, float]:
    """Relative error of the output and of every gradient against the portable scan in float64.

    Raises:
        WrongScanError: If one is too large, or two runs give gradients that differ in a bit.
    """
    leaves = [t.requires_grad_() for t in operands(shape, device)]
    dy = torch.randn(leaves[0].shape, device=device, generator=torch.Generator(device).manual_seed(1)).to(shape.dtype)
    got = forward_and_backward(leaves, dy)
    again = forward_and_backward(leaves, dy)
    errors = {}
    with use_backend("chunked"):
        truth = forward_and_backward([t.detach().double().requires_grad_() for t in leaves], dy.double())
    for name, value, expected in zip(("y", *NAMES), got, truth, strict=True):
        value = value.double()  # noqa: PLW2901
        error = float((value - expected).norm() / expected.norm())
        errors[name] = error if bool(value.isfinite().all()) else math.inf
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] < TOLERANCE[shape.dtype]:
        what = "the output" if worst == "y" else f"the gradient of {worst}"
        raise WrongScanError(f"{shape.label}: {what} is wrong by {errors[worst]:.1e}; not timed")
    for name, first, second in zip(NAMES, got[1:], again[1:], strict=True):
        if not torch.equal(first, second):
            raise WrongScanError(f"{shape.label}: the gradient of {name} differs between two runs; not timed")
    return errors


# --------------------------------------------------------------------------------------------------------------------
# The usual way: features are copied along the routes, Δ is written out, one scan of sequences, copies back.


def unfused_operands(values: list[Tensor]) -> list[Tensor]:
    """The same operands as it has them: x (B, D, H, W), and dbc (B, K, R+2N, L) in the order of the visits."""
    x, dbc, *parameters = values
    rows, columns = dbc.flatten(1, 2), dbc.transpose(1, 2).flatten(1, 2)
    visited = [rows[:, :, 0], columns[:, :, 1], rows[:, :, 2].flip(1), columns[:, :, 3].flip(1)]
    return [x.permute(0, 3, 1, 2).contiguous(), torch.stack(visited, 1).transpose(2, 3).contiguous(), *parameters]


def unfused(x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor) -> Tensor:
    """Route copies, Δ projection, `sequence_scan`, sum over the routes: (B, D, H, W)."""
    batch, channels, height, width = x.shape
    states = A.shape[2]
    routes = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)
    routes = torch.cat([routes, routes.flip(-1)], 1)
    rank, B, C = dbc.split([dbc.shape[2] - 2 * states, states, states], 2)
    delta = torch.einsum("bkrl,kdr->bkdl", rank, dt_weight.to(rank.dtype))
    flat = [t.flatten(0, 1) for t in (A, D, dt_bias)]
    scan = sequence_scan()[1]
    y = scan(routes.flatten(1, 2), delta.flatten(1, 2), flat[0], B, C, flat[1], delta_bias=flat[2], delta_softplus=True)
    y = y.view(batch, 4, channels, -1)
    y = y[:, :2] + y[:, 2:].flip(-1)
    rows, columns = y[:, 0].view(batch, channels, height, width), y[:, 1].view(batch, channels, width, height)
    return rows + columns.transpose(2, 3)


@cache
def sequence_scan() -> tuple[str, Callable[..., Tensor]]:
    """The scan of sequences that the usual way takes, and its name: mamba_ssm's where it is installed, else ours."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return "chunked selective_scan", selective_scan
    return "mamba_ssm selective_scan_fn", selective_scan_fn
