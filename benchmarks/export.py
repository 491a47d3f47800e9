"""Exported models in ONNX Runtime beside PyTorch and exported peers, in turns, on a CPU.

    python benchmarks/export.py --batch 1 8

*kernels* is an exported file with our kernels registered, *standard* the same as any runtime computes it, *int8* one
with products in 8 bits, calibrated on noise; peers are models of timm as PyTorch exports them, for 224². Nothing
of ours is timed that differs from PyTorch by more than 1e-5, but int8. Results: ``results/export.csv``. Stop other work
first. Exporting takes some minutes; ``--files FOLDER`` keeps the files, so that another run only times.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from paired import RESULTS, alternate, environment, write_csv
from torch import Tensor, nn

import vmamba
from vmamba.export import export
from vmamba.ort import runner

PEERS = ("convnext_tiny", "swin_tiny_patch4_window7_224")
SIZE = 224
EAGER = "ours, PyTorch, eager"


def export_all(model: nn.Module, batches: list[int], folder: Path) -> None:
    """Write what is not in the folder yet."""
    if not (folder / "float32.onnx").exists():
        export(model, folder / "float32.onnx", image_size=SIZE)
    if not (folder / "int8.onnx").exists():
        noise = list(torch.randn(4, 1, 3, SIZE, SIZE))
        export(model, folder / "int8.onnx", image_size=SIZE, precision="int8", calibration=noise)
    for name in PEERS:
        for batch in batches:
            path = folder / f"{name}-{batch}.onnx"
            if not path.exists():
                images = (torch.randn(batch, 3, SIZE, SIZE),)
                peer = timm.create_model(name).eval()
                torch.onnx.export(peer, images, path, dynamo=True, external_data=False, verbose=False)


def cases(model: nn.Module, images: Tensor, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that takes turns, ours checked."""
    with torch.inference_mode():
        truth = model(images)
    runs: dict[str, Callable[[], object]] = {EAGER: torch.inference_mode()(partial(model, images))}
    for name, file, kernels, tolerance in (
        ("kernels", "float32.onnx", True, 1e-5),
        ("standard", "float32.onnx", False, 1e-5),
        ("int8, kernels", "int8.onnx", True, 0.5),
    ):
        run = runner(folder / file, threads=threads, kernels=kernels)
        error = float((run(images)[0] - truth).norm() / truth.norm())
        print(f"{name}: within {error:.1e} of PyTorch", flush=True)
        if not error < tolerance:
            raise SystemExit(f"{name} differs from PyTorch by {error:.1e}; nothing was timed")
        runs[f"ours, ONNX Runtime, {name}"] = partial(run, images)
    for peer in PEERS:
        run = runner(folder / f"{peer}-{len(images)}.onnx", threads=threads, kernels=False)
        runs[f"{peer}, ONNX Runtime"] = partial(run, images)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vmamba_tiny_s1l8")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="keep the exported files there")
    parser.add_argument("--output", type=Path, default=RESULTS / "export.csv")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = vmamba.create_model(options.model).eval()
    print(f"{options.threads} threads", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        export_all(model, options.batch, folder)
        for batch in options.batch:
            runs = cases(model, torch.randn(batch, 3, SIZE, SIZE), options.threads, folder)
            times = alternate(runs, options.rounds, warmup=2, settle=True)
            eager = times[EAGER].median
            for name, t in times.items():
                rows.append(
                    {
                        "batch": batch,
                        "threads": options.threads,
                        "case": name,
                        "ms": f"{1e3 * t.median:.1f}",
                        "quartiles": f"{1e3 * t.low:.1f}-{1e3 * t.high:.1f}",
                        "images/s": f"{batch / t.median:.2f}",
                        "time / eager": f"{t.median / eager:.3f}",
                    }
                )
                print(" · ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
            write_csv(options.output, rows, environment())
            del runs  # or sessions of one batch take memory and threads from those of the next
            gc.collect()


if __name__ == "__main__":
    main()
