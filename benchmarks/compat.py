"""SS2D of `vmamba.compat.v0` and `v2` beside what networks do without them: paired, one layer, its weights shared.

*layers* is our class. *stand-in* copies the map along four routes around Mamba's scan, as networks' own classes do,
with `vmamba.compat.install`'s functions for the missing ones. *loop* is the same around a loop over the tokens. Nothing
is timed whose outputs or gradients differ by more than 1e-4. Results: ``results/compat.csv``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from paired import RESULTS, alternate, environment, write_csv
from torch import Tensor, nn

from vmamba.compat import v0, v2
from vmamba.compat.cross_scan import cross_merge_fn, cross_scan_fn
from vmamba.compat.selective_scan_interface import selective_scan_fn, selective_scan_ref
from vmamba.compat.ss2d import ROUTES, AuthorSS2D

#: Of one row, after which no further round begins.
SECONDS = 10.0

Scan = Callable[..., Tensor | tuple[Tensor, Tensor]]

GENERATIONS: dict[str, Callable[[int], AuthorSS2D]] = {
    "v0": v0.SS2D,
    "v2": lambda dim: v2.SS2D(dim, d_state=1, ssm_ratio=1.0, conv_bias=False, forward_type="v05_noz"),
}


def with_copies(layer: AuthorSS2D, selective_scan: Scan) -> AuthorSS2D:
    """A copy of a layer that scans four permuted copies of its map, by one function of Mamba's form."""
    layer = copy.deepcopy(layer)

    def scan(x: Tensor, pattern: str, first: int, end: int) -> Tensor:
        height, width = x.shape[1:3]
        sequences = cross_scan_fn(x, in_channel_first=False)  # (B, 4, D, L)
        weight = layer.x_proj.weight if hasattr(layer, "x_proj") else layer.x_proj_weight
        parts = torch.einsum("bkdl,kcd->bkcl", sequences, weight.reshape(ROUTES, -1, sequences.shape[2]))
        low_rank, B, C = parts.split([layer.dt_rank, layer.d_state, layer.d_state], dim=2)
        delta = torch.einsum("bkrl,kdr->bkdl", low_rank, layer._dt_weight())
        y = selective_scan(
            sequences.flatten(1, 2),
            delta.flatten(1, 2),
            -torch.exp(layer.A_logs),
            B,
            C,
            layer.Ds,
            delta_bias=layer.dt_projs_bias.flatten(),
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        maps = y.unflatten(1, (ROUTES, -1)).unflatten(-1, (height, width))
        return cross_merge_fn(maps, in_channel_first=False).unflatten(1, (height, width))

    layer._scan = scan  # type: ignore[method-assign]
    return layer


def step(layer: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    """One call: the output, and in training the gradients of its sum of squares for input and parameters."""
    if not training:
        with torch.no_grad():
            return [layer(x)]
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.pow(2).sum(), [x, *layer.parameters()])]


def check(cases: dict[str, AuthorSS2D], x: Tensor) -> None:
    """Refuse to time what is wrong."""
    truth = step(cases["loop"], x, training=True)
    for name, layer in cases.items():
        for got, expected in zip(step(layer, x, training=True), truth, strict=True):
            error = float((got - expected).norm() / expected.norm().clamp_min(1e-30))
            if not error < 1e-4:
                raise SystemExit(f"{name} differs from the loop by {error:.1e}: nothing is timed")


def measure(generation: str, dim: int, size: int, batch: int, training: bool, rounds: int) -> dict[str, object]:
    """A row: the three ways in turns, and how many times as fast ours is."""
    torch.manual_seed(0)
    layer = GENERATIONS[generation](dim)
    cases = {
        "layers": layer,
        "stand-in": with_copies(layer, selective_scan_fn),
        "loop": with_copies(layer, selective_scan_ref),
    }
    x = torch.randn(batch, size, size, dim)
    check(cases, x)
    calls = {name: lambda layer=layer: step(layer, x, training) for name, layer in cases.items()}
    times = alternate(calls, rounds, warmup=1, seconds=SECONDS)
    row: dict[str, object] = {"generation": generation, "dim": dim, "map": f"{size}x{size}", "batch": batch}
    row["pass"] = "forward and backward" if training else "forward"
    row |= {f"{name}, ms": f"{1e3 * t.median:.2f} ({1e3 * t.low:.2f}-{1e3 * t.high:.2f})" for name, t in times.items()}
    for name in ("stand-in", "loop"):
        row[f"speed-up on {name}"] = f"{times[name].median / times['layers'].median:.2f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="tiny maps, three rounds: whether it runs, not how fast")
    parser.add_argument("--generations", nargs="+", choices=GENERATIONS, default=list(GENERATIONS))
    parser.add_argument("--output", type=Path, default=RESULTS / "compat.csv")
    options = parser.parse_args()
    shapes = [(8, 4, 1)] if options.smoke else [(96, 56, 1), (192, 28, 1), (384, 14, 1), (192, 28, 8)]
    rounds = 3 if options.smoke else options.rounds
    rows = []
    for generation in options.generations:
        for dim, size, batch in shapes:
            for training in (False, True):
                rows.append(measure(generation, dim, size, batch, training, rounds))
                print(" · ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
                write_csv(options.output, rows, environment())


if __name__ == "__main__":
    main()
