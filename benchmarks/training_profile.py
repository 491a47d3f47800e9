"""Where the time of a training step on a CPU goes, of VMamba and its peers, against what its products alone would take.

    python benchmarks/training_profile.py                three minutes on one core

One thread, forward, loss and backward in float32, without an optimiser. A step's processor time is that of the fastest
of several; its parts are the operators of one profiled step, scaled to it. The peak is that of PyTorch's own product of
large matrices. Work beside it disturbs both little. Results: ``results/training_profile.csv``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable

import torch
from cpu import OURS, PEERS, Row
from frozen_profile import fastest
from paired import RESULTS, environment, write_csv
from runtime_cases import create
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

#: Words in the names of operators; the first that fits counts.
PARTS = {
    "scans": ("ss2d_scan",),
    "convolutions": ("convolution",),
    "products": ("linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm"),
    "GELU, SiLU, softmax": ("gelu", "silu", "softmax"),
    "LayerNorm": ("layer_norm",),
}


def step_of(name: str, batch: int) -> Callable[[], None]:
    model = create(name).train()
    x, y = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()

    return step


def parts_of(step: Callable[[], None]) -> Counter[str]:
    """Fraction of the time by part."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    times: Counter[str] = Counter()
    for event in record.key_averages():
        fitting = [part for part, words in PARTS.items() if any(word in event.key for word in words)]
        times[fitting[0] if fitting else "rest"] += event.self_cpu_time_total
    return Counter({part: spent / times.total() for part, spent in times.items()})


def gigaflops_of(name: str, batch: int) -> float:
    """Of the products and convolutions of a step: three times those forward."""
    with FlopCounterMode(display=False) as counter:
        create(name).train()(torch.randn(1, 3, 224, 224))
    counts = counter.get_flop_counts()["Global"]
    return 3 * batch * sum(count for operator, count in counts.items() if "scan" not in str(operator)) / 1e9


def peak(calls: int) -> float:
    """GFLOP in a millisecond."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    return 2 * 1536**3 / 1e9 / fastest(lambda: a @ b, 5 * calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--calls", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    best = peak(options.calls)
    print(f"peak {1e3 * best:.0f} GFLOP/s of one thread", flush=True)
    rows: list[Row] = []
    for name in (OURS, *PEERS[:2]):
        step = step_of(name, options.batch)
        whole, work = fastest(step, options.calls), gigaflops_of(name, options.batch)
        fractions = parts_of(step)
        row: Row = {"model": name, "batch": options.batch, "ms": round(whole), "GFLOP": round(work, 1)}
        row["products_and_convolutions_at_peak_ms"] = round(work / best)
        row |= {part: round(whole * fractions[part]) for part in (*PARTS, "rest")}
        rows.append(row)
        print(" · ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
    write_csv(RESULTS / "training_profile.csv", rows, environment())


if __name__ == "__main__":
    main()
