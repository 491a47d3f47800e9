"""Exported models in ONNX Runtime and OpenVINO beside PyTorch and exported peers, in turns, on a CPU.

    python benchmarks/export.py --batch 1 8

*kernels* is an exported file with our kernels registered, *standard* the same file as any runtime computes it; peers
are timm's models as PyTorch exports them. Nothing of ours is timed that differs from PyTorch by more than 1e-5.
Results: ``results/export.csv``. Stop other work first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import openvino
import timm
import torch
from paired import RESULTS, alternate, environment, write_csv
from torch import Tensor, nn

import vmamba
from vmamba.export import export
from vmamba.export.openvino import SETTINGS
from vmamba.ort import runner

PEERS = ("convnext_tiny", "swin_tiny_patch4_window7_224")


def exported_peer(name: str, images: Tensor, folder: Path) -> Path:
    """A model of timm's as ONNX, for the shape of `images`."""
    path = folder / f"{name}.onnx"
    model = timm.create_model(name).eval()
    torch.onnx.export(model, (images,), path, dynamo=True, external_data=False, verbose=False)
    return path


def in_openvino(path: Path, images: Tensor, threads: int) -> Callable[[], object]:
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(images.shape))
    compiled = core.compile_model(model, "CPU", SETTINGS | {"INFERENCE_NUM_THREADS": threads})
    return lambda: compiled([images.numpy()])


def cases(model: nn.Module, images: Tensor, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that takes turns, ours checked."""
    size = images.shape[-1]
    ours = export(model, folder / "model.onnx", image_size=size).path
    static = export(model, folder / "model.xml", image_size=size, format="openvino").path
    runs: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        truth = model(images)
    for name, kernels in (("kernels", True), ("standard", False)):
        run = runner(ours, threads=threads, kernels=kernels)
        error = float((run(images)[0] - truth).norm() / truth.norm())
        if not error < 1e-5:
            raise SystemExit(f"{name} differs from PyTorch by {error:.1e}; nothing was timed")
        runs[f"ours, ONNX Runtime, {name}"] = lambda run=run: run(images)
    if len(images) == 1:
        runs["ours, OpenVINO"] = in_openvino(static, images, threads)
    frozen = vmamba.freeze(model)
    runs["ours, PyTorch, eager"] = torch.inference_mode()(lambda: model(images))
    runs["ours, PyTorch, frozen"] = torch.inference_mode()(lambda: frozen(images))
    for peer in PEERS:
        path = exported_peer(peer, images, folder)
        run = runner(path, threads=threads, kernels=False)
        runs[f"{peer}, ONNX Runtime"] = lambda run=run: run(images)
        runs[f"{peer}, OpenVINO"] = in_openvino(path, images, threads)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vmamba_tiny_s1l8")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "export.csv")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = vmamba.create_model(options.model).eval()
    rows = []
    for batch in options.batch:
        with tempfile.TemporaryDirectory() as folder:
            runs = cases(model, torch.randn(batch, 3, options.size, options.size), options.threads, Path(folder))
            times = alternate(runs, options.rounds, warmup=2)
        eager = times["ours, PyTorch, eager"].median
        for name, t in times.items():
            rows.append(
                {
                    "batch": batch,
                    "case": name,
                    "ms": f"{1e3 * t.median:.1f}",
                    "quartiles": f"{1e3 * t.low:.1f}-{1e3 * t.high:.1f}",
                    "images/s": f"{batch / t.median:.2f}",
                    "time / eager": f"{t.median / eager:.3f}",
                }
            )
            print(" · ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
        write_csv(options.output, rows, environment() | {"openvino": openvino.__version__})


if __name__ == "__main__":
    main()
