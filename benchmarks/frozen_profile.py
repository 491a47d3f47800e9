"""Where the time of a frozen VMamba on a CPU goes, against what its matrix products alone would take.

    python benchmarks/frozen_profile.py                  two minutes on one core

One thread, images together as in a batch, processor time of the fastest of several calls: work beside it disturbs it
little. The peak is that of our own product whose operands stay in the cache. A block is one operator; its products are
timed by themselves, without LayerNorm, GELU and residual, the scan, too, and the rest is what is left.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import torch
from cpu import OURS, STAGES, Row
from paired import RESULTS, environment, write_csv
from torch import Tensor, nn

import vmamba
from vmamba.layers import Block
from vmamba.ops import PRECISIONS, pack_linear, packed_linear, ss2d_scan

COLUMNS = ("precision", "part", "calls", "ms", "products_ms", "scans_ms", "rest_ms", "products_at_peak_ms")


def fastest(run: Callable[[], object], calls: int) -> float:
    """Milliseconds of processor time."""
    taken = []
    for _ in range(calls + 1):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken[1:]) * 1e3


def product(rows: int, inputs: int, outputs: int, precision: str) -> Callable[[], Tensor]:
    x, packed = torch.randn(rows, inputs), pack_linear(torch.randn(outputs, inputs), None, precision)
    return lambda: packed_linear(x, packed, outputs, precision)


def peak(precision: str, calls: int) -> float:
    """Multiply-adds in a millisecond."""
    rows, inputs, outputs = 112, 768, 256
    return rows * inputs * outputs / fastest(product(rows, inputs, outputs, precision), 20 * calls)


def of_block(batch: int, stage: tuple[int, int, int, int], precision: str, calls: int, best: float) -> Row:
    size, dim, rank, blocks = stage
    x = torch.randn(batch, size, size, dim)
    rows, frozen = batch * size * size, vmamba.freeze(Block(dim).eval(), precision)
    few = min(rows, 256)  # rows that stay in the cache, as they do inside a block
    layers = [(dim, dim), (dim, 4 * (rank + 2)), (dim, dim), (dim, 4 * dim), (4 * dim, dim)]
    products = rows / few * sum(fastest(product(few, *layer, precision), 5 * calls) for layer in layers)
    dbc, dt_weight = torch.randn(batch, size, size, 4, rank + 2), torch.randn(4, dim, rank) * 0.1
    A, D, bias = -torch.ones(4, dim, 1), torch.ones(4, dim), torch.zeros(4, dim)
    scan = fastest(lambda: ss2d_scan(x, dbc, dt_weight, A, D, bias, "cross"), calls)
    whole = fastest(lambda: frozen(x), calls)
    work = rows * sum(inputs * outputs for inputs, outputs in layers)
    return line(precision, f"blocks of {dim} channels", blocks, whole, products, scan, work / best)


def of_layer(layer: nn.Module, x: Tensor, name: str, work: int, precision: str, calls: int, best: float) -> Row:
    """A stem or a downsampling; its products are not timed by themselves."""
    frozen = vmamba.freeze(layer.eval(), precision)
    return line(precision, name, 1, fastest(lambda: frozen(x), calls), None, None, work / best)


def line(
    precision: str, part: str, count: int, whole: float, products: float | None, scan: float | None, at_peak: float
) -> Row:
    rest = None if products is None or scan is None else whole - products - scan
    values = [None if v is None else round(v * count, 2) for v in (whole, products, scan, rest, at_peak)]
    return dict(zip(COLUMNS, [precision, part, count, *values], strict=True))


def profile(batch: int, calls: int) -> list[Row]:
    torch.manual_seed(0)
    rows: list[Row] = []
    for precision in PRECISIONS:
        best, model = peak(precision, calls), vmamba.create_model(OURS).eval()
        image, counts = torch.randn(batch, 3, 224, 224), (3 * 9 * 48 * 112**2 + 48 * 9 * 96 * 56**2) * batch
        some = [of_layer(model.stem, image, "stem", counts, precision, calls, best)]
        some += [of_block(batch, stage, precision, calls, best) for stage in STAGES]
        for stage, (size, dim, *_) in zip(list(model.stages)[1:], STAGES, strict=False):
            x, work = torch.randn(batch, size, size, dim), batch * (size // 2) ** 2 * 9 * dim * 2 * dim
            some.append(of_layer(stage.downsample, x, f"downsampling {dim}", work, precision, calls, best))
        frozen = vmamba.freeze(model, precision)
        with torch.inference_mode():
            whole = fastest(functools.partial(frozen, image), calls)
        at_peak = sum(float(str(r["products_at_peak_ms"])) for r in some)
        some.append(line(precision, "whole model", 1, whole, None, None, at_peak))
        print(f"{precision}: peak {2 * best / 1e6:.0f} GFLOP/s of one thread")
        rows += some
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = profile(options.batch, options.calls)
    write_csv(RESULTS / "frozen_profile.csv", rows, environment())
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join("" if row[name] is None else str(row[name]) for name in COLUMNS) + " |")


if __name__ == "__main__":
    main()
