"""A model in a runtime, ready to be timed: what `cpu_runtimes.py` compares.

Exported files, compiled code and the outputs of eager PyTorch are kept in a folder of the system for temporary files,
since exporting and compiling take longer than timing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from cpu import OURS, inference
from torch import Tensor, nn

import vmamba

CACHE = Path(tempfile.gettempdir()) / "vmamba_cpu_runtimes"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(CACHE / "compiled")  # importing torch may have set it
#: Relative error in norm against eager float32 that a case may have.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "int8": 5e-1}
#: Faster in channels-last memory.
CHANNELS_LAST = ("convnext_tiny", "mambaout_tiny")

FROZEN = ("frozen float32", "frozen bfloat16", "frozen int8")
RUNTIMES = ("ONNX Runtime float32", "ONNX Runtime int8", "OpenVINO float32", "OpenVINO bfloat16")

Run = Callable[[], object]


class Case(NamedTuple):
    """A model and a way to run it, whose last word may be a precision."""

    model: str
    way: str

    def __str__(self) -> str:
        return f"{self.model}, {self.way}"

    @property
    def precision(self) -> str:
        last = self.way.rsplit(maxsplit=1)[-1]
        return last if last in TOLERANCE else "float32"


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def create(name: str) -> nn.Module:
    """A model of timm with the same random weights every time."""
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def build(case: Case, batch: int, threads: int) -> Run:
    """A function that infers a batch.

    Raises:
        Exception: Whatever a runtime raises that cannot do it.
    """
    x = images(batch)
    if case.way.startswith("ONNX"):
        return _onnxruntime(case, x, threads)
    if case.way.startswith("OpenVINO"):
        return _openvino(case, x, threads)
    model = create(case.model)
    if case.way.startswith("frozen"):
        return inference(vmamba.freeze(model, case.precision), x)
    if case.model in CHANNELS_LAST:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if case.precision == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    return inference(torch.compile(model) if case.way.startswith("compiled") else model, x)


def error(run: Run, case: Case, batch: int) -> float:
    """Relative error in norm against eager PyTorch.

    Raises:
        ValueError: If it is too large: nothing wrong is timed.
    """
    expected = torch.load(_prepared(case.model, batch).with_suffix(".pt"), weights_only=True)
    relative: float = ((torch.as_tensor(run()).float() - expected).norm() / expected.norm()).item()
    if not relative < TOLERANCE[case.precision]:
        raise ValueError(f"relative error {relative:.1e} against eager PyTorch")
    return relative


def _prepared(name: str, batch: int) -> Path:
    """An ONNX file of a peer for this batch; beside it the output of eager PyTorch, which ours has alone."""
    path = CACHE / f"{name}_{batch}.onnx"
    if not path.with_suffix(".pt").exists():
        CACHE.mkdir(exist_ok=True)
        model, x = create(name), images(batch)
        if name != OURS:
            torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
        with torch.inference_mode():
            torch.save(model(x), path.with_suffix(".pt"))
    return path


def _quantised(path: Path) -> Path:
    """The file with linear layers in int8, activations quantised as they come."""
    from onnxruntime.quantization import quantize_dynamic

    to = path.with_name(f"{path.stem}_int8.onnx")
    if not to.exists():
        quantize_dynamic(path, to, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    return to


def _onnxruntime(case: Case, x: Tensor, threads: int) -> Run:
    import onnxruntime

    path = _prepared(case.model, len(x))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    file = _quantised(path) if case.precision == "int8" else path
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, x.numpy()
    return lambda: session.run(None, {name: array})[0]


def _openvino(case: Case, x: Tensor, threads: int) -> Run:
    import openvino

    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[case.precision]
    core = openvino.Core()
    request = core.compile_model(_prepared(case.model, len(x)), "CPU", hints).create_infer_request()
    array = x.numpy()
    return lambda: request.infer([array])[0]
