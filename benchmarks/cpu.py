"""VMamba on a CPU, against its peers in timm.

    python benchmarks/cpu.py                       every section, about 25 minutes on two cores
    python benchmarks/cpu.py eager --batch 1 8     one section

Every figure comes from paired runs: all cases of a comparison take turns in this process. Before anything is timed, the
model's output is compared with the definition's. Stop other work first; report ratios, not absolute times.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from paired import RESULTS, Timing, alternate, environment, write_csv
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import vmamba
from vmamba.layers.call import call
from vmamba.ops import BACKENDS, select, ss2d_scan, use_backend

OURS = "vmamba_tiny_s1l8"
FROZEN = f"{OURS} frozen"
PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "mambaout_tiny", "deit_small_patch16_224")
#: (side of the token grid, channels, rank, blocks) of the four stages of OURS at 224×224.
STAGES = ((56, 96, 6, 2), (28, 192, 12, 2), (14, 384, 24, 8), (7, 768, 48, 2))
SIZES = (224, 384, 512, 768, 1024, 1536, 2048)

Row = dict[str, object]


def check_correctness() -> None:
    """Refuse to time a wrong model."""
    torch.manual_seed(0)
    model, x = vmamba.create_model(OURS).eval(), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        with use_backend("reference"):
            expected = model(x)
        error = max(((got - expected).norm() / expected.norm()).item() for got in (model(x), vmamba.freeze(model)(x)))
    if not error < 1e-5:
        raise SystemExit(f"the model is wrong: relative error {error:.1e} against the definition; nothing was timed")
    print(f"correct: relative error {error:.1e} against the definition")


def row(section: str, case: str, batch: int, timing: Timing, images: int | None = None, **extra: object) -> Row:
    per_second = (images or batch) / timing.median
    return {
        "section": section,
        "case": case,
        "batch": batch,
        "ms": round(timing.median * 1e3, 3),
        "ms_low": round(timing.low * 1e3, 3),
        "ms_high": round(timing.high * 1e3, 3),
        "images_per_s": round(per_second, 3),
        "note": "; ".join(f"{k} {v}" for k, v in extra.items()),
    }


def create(name: str, **options: Any) -> nn.Module:
    """A model of timm, or the frozen form of ours."""
    return vmamba.freeze(timm.create_model(OURS)) if name == FROZEN else timm.create_model(name, **options).eval()


def inference(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def best_layouts(models: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, tuple[nn.Module, Tensor, str]]:
    """Every model with its faster memory layout of (weights and image)."""
    best = {}
    for name, model in models.items():
        if name.startswith("vmamba"):
            best[name] = (model, x, "any")  # brings the image into its own layout
            continue
        last = x.contiguous(memory_format=torch.channels_last)
        plain = inference(model, x)
        copy = timm.create_model(name).eval().to(memory_format=torch.channels_last)
        timings = alternate({"NCHW": plain, "channels-last": inference(copy, last)}, rounds=max(3, rounds // 3))
        if timings["NCHW"].median <= timings["channels-last"].median:
            best[name] = (model, x, "NCHW")
        else:
            best[name] = (copy, last, "channels-last")
    return best


def eager(batches: list[int], rounds: int) -> list[Row]:
    models = {name: create(name) for name in (OURS, FROZEN, *PEERS)}
    rows = []
    for batch in batches:
        x = torch.randn(batch, 3, 224, 224)
        best = best_layouts(models, x, rounds)
        cases = {name: inference(model, image) for name, (model, image, _) in best.items()}
        for name, timing in alternate(cases, rounds).items():
            rows.append(row("eager", name, batch, timing, layout=best[name][2]))
    return rows


def compiled(batches: list[int], rounds: int) -> list[Row]:
    rows = []
    for batch in batches:
        torch.compiler.reset()
        x = torch.randn(batch, 3, 224, 224)
        cases = {}
        for name in (OURS, FROZEN, *PEERS):
            model = create(name)
            if name in ("convnext_tiny", "mambaout_tiny"):
                cases[name] = inference(torch.compile(model.to(memory_format=torch.channels_last)), x)
            else:
                cases[name] = inference(torch.compile(model), x)
        cases[f"{FROZEN}, eager"] = inference(create(FROZEN), x)
        for name, timing in alternate(cases, rounds).items():
            rows.append(row("compiled", name, batch, timing))
    return rows


def backends(batches: list[int], rounds: int) -> list[Row]:
    model, rows = create(FROZEN), []

    def with_backend(name: str, x: Tensor) -> Callable[[], object]:
        def run() -> object:
            with use_backend(name):
                return inference(model, x)()

        return run

    names = [name for name in BACKENDS if name in ("reference", "chunked") or name == select(torch.device("cpu")).name]
    for batch in batches:
        x = torch.randn(batch, 3, 224, 224)
        cases = {name: with_backend(name, x) for name in names}
        for name, timing in alternate(cases, max(3, rounds // 3), warmup=1).items():
            rows.append(row("backends", name, batch, timing))
    return rows


def training(batches: list[int], rounds: int) -> list[Row]:
    rows = []
    for batch in [b for b in batches if b > 1]:
        x, y = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
        cases = {}
        for name in (OURS, *PEERS):
            model = timm.create_model(name).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            cases[name] = functools.partial(train_step, model, optimizer, x, y)
        for name, timing in alternate(cases, max(3, rounds // 2), warmup=1).items():
            rows.append(row("training", name, batch, timing))
    return rows


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def scan(batches: list[int], rounds: int) -> list[Row]:
    rows = []
    names = [name for name in BACKENDS if name == "chunked" or name == select(torch.device("cpu")).name]
    for batch in batches:
        for side, channels, rank, _ in STAGES:
            shapes = ((batch, side, side, channels), (batch, side, side, 4, rank + 2), (4, channels, rank))
            x, dbc, weight = (torch.randn(shape) for shape in shapes)
            A, D, bias = -torch.rand(4, channels, 1), torch.ones(4, channels), torch.randn(4, channels) - 3
            operands = [t.requires_grad_() for t in (x, dbc, weight, A, D, bias)]

            def forward(name: str, operands: list[Tensor] = operands) -> None:
                with use_backend(name), torch.no_grad():
                    ss2d_scan(*operands)

            def both(name: str, operands: list[Tensor] = operands) -> None:
                with use_backend(name):
                    torch.autograd.grad(ss2d_scan(*operands).sum(), operands)

            cases = {
                f"{name} {what.__name__}": functools.partial(what, name) for name in names for what in (forward, both)
            }
            for name, timing in alternate(cases, rounds).items():
                rows.append(row("scan", f"{name} {side}×{side}×{channels}", batch, timing))
    return rows


def roofline(batches: list[int], rounds: int) -> list[Row]:
    """The frozen forward, the scans alone, and the matrix products (linear layers, dense convolutions) alone."""
    model, rows = vmamba.create_model(OURS).eval(), []
    for batch in batches:
        x = torch.randn(batch, 3, 224, 224)
        products: list[tuple[nn.Module, Tensor]] = []
        scans: list[tuple[Any, ...]] = []
        hooks = [
            module.register_forward_pre_hook(lambda m, args, products=products: products.append((m, args[0].clone())))
            for module in model.modules()
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        ]
        record_scan(model, x, scans)
        for hook in hooks:
            hook.remove()

        def run_products(products: list[Any] = products) -> None:
            with torch.inference_mode():
                for module, argument in products:
                    call(module, argument)

        def run_scans(scans: list[Any] = scans) -> None:
            with torch.inference_mode():
                for arguments in scans:
                    torch.ops.vmamba.ss2d_scan(*arguments)

        cases = {"forward": inference(create(FROZEN), x), "matrix products": run_products, "scans": run_scans}
        for name, timing in alternate(cases, rounds).items():
            rows.append(row("roofline", name, batch, timing))
    return rows


def record_scan(model: nn.Module, x: Tensor, scans: list[tuple[Any, ...]]) -> None:
    """Run the model once and keep the arguments of its scans."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.vmamba.ss2d_scan.default:
                scans.append(tuple(a.clone() if isinstance(a, Tensor) else a for a in args))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Recorder():
        model(x)


def growth(_: list[int], rounds: int) -> list[Row]:
    """Time and peak memory against resolution, each size in a process of its own for the sake of the memory."""
    rows = []
    for name in (FROZEN, "deit_small_patch16_224"):
        for size in SIZES:
            command = [sys.executable, __file__, "--measure", name, str(size), str(torch.get_num_threads())]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                print(f"{name} at {size}: {result.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            median, low, high, memory = map(float, result.stdout.split())
            timing = Timing(median, low, high)
            pixels = size * size
            extra = {"size": size, "ns/pixel": f"{median / pixels * 1e9:.1f}", "bytes/pixel": f"{memory / pixels:.0f}"}
            rows.append(row("growth", name, 1, timing, **extra))
    return rows


def measure(name: str, size: int, threads: int) -> None:
    """One model at one resolution: median, quartiles, and peak memory above that of the loaded model."""
    torch.set_num_threads(threads)
    options = {"img_size": size} if name.startswith("deit") else {}
    model = create(name, **options)
    with torch.inference_mode():
        model(torch.randn(1, 3, 224, 224)) if not options else None
    x = torch.randn(1, 3, size, size)
    ctypes.CDLL(None).malloc_trim(0)  # what loading left in the allocator would hide a part
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_memory()
    timing = alternate({name: inference(model, x)}, rounds=5 if size < 1500 else 2 + (size < 3000), warmup=1)[name]
    print(timing.median, timing.low, timing.high, peak_memory() - before)


def peak_memory() -> int:
    """Largest resident size of this process, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


SECTIONS = {f.__name__: f for f in (eager, compiled, backends, training, scan, roofline, growth)}


def show(rows: list[Row]) -> None:
    table = Table(*rows[0])
    previous = rows[0]
    for current in rows:
        if (current["section"], current["batch"]) != (previous["section"], previous["batch"]):
            table.add_section()
        table.add_row(*map(str, current.values()))
        previous = current
    Console(width=150).print(table)


def draw(rows: list[Row], path: Path) -> None:
    """Images/s of every model, and growth with resolution."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(
        zip((OURS, FROZEN, *PEERS), ("#E69F00", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#999999"), strict=True)
    )
    panels = [
        (s, b)
        for s in ("eager", "compiled", "training")
        for b in sorted({r["batch"] for r in rows if r["section"] == s})
    ]
    sizes = [r for r in rows if r["section"] == "growth"]
    count = len(panels) + 2 * bool(sizes)
    if not count:
        return
    figure, axes = plt.subplots(1, count, figsize=(3.3 * count, 3.6), layout="constrained", squeeze=False)
    for axis, (section, batch) in zip(axes[0], panels, strict=False):
        chosen = [r for r in rows if (r["section"], r["batch"]) == (section, batch) and r["case"] in colours]
        names = [str(r["case"]) for r in chosen]
        axis.barh(
            [n.split("_patch")[0] for n in names],
            [r["images_per_s"] for r in chosen],
            color=[colours[n] for n in names],
        )
        axis.invert_yaxis()
        axis.set_title(f"{section}, batch {batch}")
        axis.set_xlabel("images/s")
    for axis, quantity in zip(axes[0][len(panels) :], ("ns/pixel", "bytes/pixel"), strict=False):
        for name in {str(r["case"]) for r in sizes}:
            notes = [dict(item.split(" ") for item in str(r["note"]).split("; ")) for r in sizes if r["case"] == name]
            x, y = [int(n["size"]) for n in notes], [float(n[quantity]) for n in notes]
            axis.plot(x, y, marker="o", label=name.split("_patch")[0], color=colours[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks(SIZES, list(map(str, SIZES)), rotation=60)
        axis.set_ylim(bottom=0)
        axis.set_title(quantity.replace("ns", "time, ns").replace("bytes", "peak memory, bytes"))
        axis.set_xlabel("side of the image")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", choices=BACKENDS, help="scan backend; default: the automatic choice")
    parser.add_argument("--name", default="cpu", help="of the files in results/")
    parser.add_argument("--measure", nargs=3, metavar=("MODEL", "SIZE", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]), int(options.measure[2]))
        return
    torch.set_num_threads(options.threads)
    backend = options.backend or select(torch.device("cpu")).name
    with use_backend(backend):
        check_correctness()
        head = environment()
        for key, value in head.items():
            print(f"{key}: {value}")
        rows: list[Row] = []
        for section in options.sections or SECTIONS:
            rows += SECTIONS[section](options.batch, options.rounds)
            write_csv(RESULTS / f"{options.name}.csv", rows, head)
    show(rows)
    draw(rows, RESULTS / f"{options.name}.png")
    print(f"wrote {RESULTS / options.name}.csv and .png")


if __name__ == "__main__":
    main()
