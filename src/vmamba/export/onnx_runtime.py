"""Exported models in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor

from vmamba.errors import ExportError


def session(source: str | Path | onnx.ModelProto, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Load a model for the CPU.

    Args:
        source: A file, or the model itself.
        threads: Threads of an operator; those of PyTorch by default.

    Raises:
        ExportError: If it cannot be loaded.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    content = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common class of their own
        name = "the exported model" if isinstance(source, onnx.ModelProto) else source
        raise ExportError(f"{name}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None


def runner(source: str | Path | onnx.ModelProto, threads: int | None = None) -> Callable[[Tensor], list[Tensor]]:
    """A function from images to the model's results; see `session`."""
    model = session(source, threads)
    name = model.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(result) for result in model.run(None, {name: images.numpy()})]

    return run
