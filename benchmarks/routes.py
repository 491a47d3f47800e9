"""`scan_routes` through its index maps beside copies of the tokens along the routes: scans and whole models, paired.

*native* are the C++ kernels that read and write through the order. *gathered* copies tokens along the routes around
`selective_scan`, whose kernels are native, too; it is what a GPU and exported programs run. Nothing is timed whose
outputs or gradients differ by more than 1e-4. Results: ``results/routes.csv``, with ``--models``
``results/routes_models.csv``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from paired import RESULTS, alternate, environment, write_csv
from torch import Tensor

import vmamba
from vmamba.layers.routed_scan import directed_order
from vmamba.ops import orders, scan_routes

#: Orders of a height and a width, whether their routes are summed, and whether they read the same rows.
SCANS: dict[str, tuple[Callable[[int, int], Tensor], bool, bool]] = {
    "rows, columns, windows of 7, by route": (
        lambda h, w: directed_order(h, w, ["h", "v_flip", "w7", "w7_flip"]),
        False,
        False,
    ),
    "strided": (lambda h, w: orders.strided(h, w, 2), True, True),
    "cross": (orders.cross, True, False),
    "eight directions": (orders.eight_directions, True, False),
}
MODELS = ("local_vmamba_tiny", "efficient_vmamba_tiny")

Step = Callable[[], list[Tensor]]


def scan_step(name: str, size: int, channels: int, states: int, training: bool) -> Step:
    """One scan, and in training its gradients."""
    make, summed, shared = SCANS[name]
    order = make(size, size)
    torch.manual_seed(0)
    routes, rank = order.shape[0], max(1, channels // 32)
    rows = (rank + 2 * states,) if shared else (routes, rank + 2 * states)
    operands = [
        torch.randn(1, size, size, channels),
        torch.randn(1, size, size, *rows),
        torch.randn(routes, channels, rank) * rank**-0.5,
        -torch.rand(routes, channels, states),
        torch.ones(routes, channels),
        torch.rand(routes, channels) - 4,
    ]
    if not training:
        return lambda: [scan_routes(*operands, order, "sum" if summed else None)]
    leaves = [t.requires_grad_() for t in operands]

    def step() -> list[Tensor]:
        y = scan_routes(*leaves, order, "sum" if summed else None)
        return [y.detach(), *torch.autograd.grad(y.pow(2).sum(), leaves)]

    return step


def model_step(name: str, batch: int, training: bool) -> Step:
    """A whole model on images of 224×224, in evaluation mode: batch norms over a few images amplify rounding."""
    torch.manual_seed(0)
    model = vmamba.create_model(name, drop_path_rate=0.0).eval()
    images = torch.randn(batch, 3, 224, 224)
    if not training:
        return torch.no_grad()(lambda: [model(images)])

    def step() -> list[Tensor]:
        y = model(images)
        return [y.detach(), *torch.autograd.grad(y.pow(2).sum(), list(model.parameters()))]

    return step


def gathered(step: Step) -> list[Tensor]:
    """The same step without the native form of `scan_routes`."""
    with mock.patch.object(sys.modules["vmamba.ops.scan_routes"], "_is_native", return_value=False):
        return step()


def measure(step: Step, rounds: int) -> dict[str, object]:
    """Milliseconds of both forms in turns: median, quartiles, and how many times as fast the native one is."""
    norm = sum(float(t.norm() ** 2) for t in gathered(step)) ** 0.5
    error = sum(float((a - b).norm() ** 2) for a, b in zip(step(), gathered(step), strict=True)) ** 0.5 / norm
    if not error < 1e-4:
        raise SystemExit(f"the two forms differ by {error:.1e}: nothing is timed")
    times = alternate({"native": step, "gathered": lambda: gathered(step)}, rounds, warmup=1, seconds=15.0)
    row: dict[str, object] = {
        f"{name}, ms": f"{1e3 * t.median:.2f} ({1e3 * t.low:.2f}-{1e3 * t.high:.2f})" for name, t in times.items()
    }
    return row | {"speed-up": f"{times['gathered'].median / times['native'].median:.2f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="tiny scans, three rounds: whether it runs, not how fast")
    parser.add_argument("--models", action="store_true", help="whole models instead of scans")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    shapes = [(6, 8)] if options.smoke else [(56, 192), (14, 768)]
    rounds = 3 if options.smoke else options.rounds
    cases: list[tuple[str, str, bool, Step]] = []
    for training in (False, True):
        if options.models:
            cases += [(name, "224x224, batch 1", training, model_step(name, 1, training)) for name in MODELS]
            continue
        for name in SCANS:
            for size, channels in shapes:
                for states in (1, 16):
                    step = scan_step(name, size, channels, states, training)
                    cases.append((name, f"{size}x{size}, D = {channels}, N = {states}", training, step))
    default = RESULTS / ("routes_models.csv" if options.models else "routes.csv")
    rows: list[dict[str, object]] = []
    for name, shape, training, step in cases:
        head = {"scan": name, "shape": shape, "pass": "forward and backward" if training else "forward"}
        rows.append(head | measure(step, rounds))
        print(" · ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
        write_csv(options.output or default, rows, environment())


if __name__ == "__main__":
    main()
