"""VMamba's frozen form against its peers in the runtimes that people take for CPU inference.

    python benchmarks/cpu_runtimes.py                                 about 12 minutes on two cores
    python benchmarks/cpu_runtimes.py --threads 1 --name cpu_runtimes_1

Ours frozen in float32, bfloat16 and int8; Swin-T, ConvNeXt-T, DeiT-S and MambaOut-T in ONNX Runtime (float32; int8,
dynamic, of linear layers) and OpenVINO (float32, bfloat16). All cases of a batch take turns in one process; batches
that are in the file already are kept, so that an interrupted run goes on. Every case is compared with eager PyTorch
before it is timed. Stop other work first; report ratios, not absolute times.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from cpu import OURS, PEERS, Row, inference, row, show
from paired import RESULTS, alternate, environment, write_csv
from torch import Tensor, nn

import vmamba

#: Relative error in norm against eager float32 that a case may have.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "int8": 5e-1}

Case = Callable[[], object]


def exported(model: nn.Module, x: Tensor, folder: Path) -> Path:
    """An ONNX file of a model for this batch."""
    path = folder / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
    return path


def onnxruntime_case(path: Path, x: Tensor, threads: int) -> Case:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, x.numpy()
    return lambda: session.run(None, {name: array})[0]


def quantised(path: Path) -> Path:
    """The file with linear layers in int8, activations quantised as they come."""
    from onnxruntime.quantization import quantize_dynamic

    to = path.with_name("int8.onnx")
    quantize_dynamic(path, to, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    return to


def openvino_case(path: Path, x: Tensor, threads: int, precision: str) -> Case:
    import openvino

    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[precision]
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
    array = x.numpy()
    return lambda: request.infer([array])[0]


def cases_of(name: str, x: Tensor, threads: int) -> dict[str, Case]:
    """All ways to run a peer; one that a runtime refuses is named and left out."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.inference_mode():
        expected = model(x)
    ways: dict[str, Case] = {"eager": inference(model, x)}
    with tempfile.TemporaryDirectory() as folder:
        path = exported(model, x, Path(folder))
        for way, make in {
            "ONNX Runtime float32": lambda: onnxruntime_case(path, x, threads),
            "ONNX Runtime int8": lambda: onnxruntime_case(quantised(path), x, threads),
            "OpenVINO float32": lambda: openvino_case(path, x, threads, "float32"),
            "OpenVINO bfloat16": lambda: openvino_case(path, x, threads, "bfloat16"),
        }.items():
            try:
                case = make()
                check(case, expected, f"{name}, {way}")
            except Exception as error:
                print(f"{name}, {way}: left out: {str(error).splitlines()[0]}")
                continue
            ways[way] = case
    return {f"{name}, {way}": case for way, case in ways.items()}


def our_cases(x: Tensor) -> dict[str, Case]:
    torch.manual_seed(0)
    model = vmamba.create_model(OURS).eval()
    cases: dict[str, Case] = {f"{OURS}, eager": inference(model, x)}
    with torch.inference_mode():
        expected = model(x)
    for precision in vmamba.ops.PRECISIONS:
        case = cases[f"{OURS}, frozen {precision}"] = inference(vmamba.freeze(model, precision), x)
        check(case, expected, f"{OURS}, {precision}")
    return cases


def check(case: Case, expected: Tensor, name: str) -> None:
    """Refuse to time a wrong model."""
    precision = name.rsplit(maxsplit=1)[-1]
    error = ((torch.as_tensor(case()) - expected).norm() / expected.norm()).item()
    if not error < TOLERANCE[precision]:
        raise ValueError(f"relative error {error:.1e} against eager PyTorch")
    print(f"{name}: relative error {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--peers", nargs="+", default=PEERS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="cpu_runtimes", help="of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = RESULTS / f"{options.name}.csv"
    rows: list[Row] = kept(file)
    for batch in options.batch:
        if any(int(str(r["batch"])) == batch for r in rows):
            print(f"batch {batch} is in {file.name} already")
            continue
        x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        cases = our_cases(x)
        for peer in options.peers:
            cases |= cases_of(peer, x, options.threads)
        for name, timing in alternate(cases, options.rounds).items():
            rows.append(row("runtimes", name, batch, timing, threads=options.threads))
        write_csv(file, rows, environment())
    show(rows)


def kept(file: Path) -> list[Row]:
    """Rows of an earlier run."""
    if not file.exists():
        return []
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return [dict(r) for r in csv.DictReader(lines)]


if __name__ == "__main__":
    main()
