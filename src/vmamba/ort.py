"""Exported models in ONNX Runtime.

Any runtime computes the scans of an exported file by the standard operators that are in it. ONNX Runtime on a CPU uses
our kernels instead where their library is registered::

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(vmamba.ort.library_path())

`session` does that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vmamba.errors import ExportError, MissingPackageError
from vmamba.ops.backends import unavailable

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def library_path() -> str:
    """Path of the library that computes the operators of the domain ``vmamba``, for ONNX Runtime 1.17 or later.

    Raises:
        ExportError: If it was not built, with the reason.
    """
    if reason := unavailable("native"):
        raise ExportError(f"no operators for ONNX Runtime: {reason}")
    from vmamba.ops.backends.native import FOLDER

    if library := next(FOLDER.glob("*vmamba_onnxruntime.*"), None):
        return str(library)
    raise ExportError(f"no operators for ONNX Runtime in {FOLDER}; reinstall vmamba where GCC or Clang is present")


def session(
    source: str | Path | onnx.ModelProto, *, threads: int | None = None, kernels: bool = True
) -> onnxruntime.InferenceSession:
    """Load an exported model for the CPU.

    Args:
        source: A file, or the model itself.
        threads: Threads of an operator; those of PyTorch by default.
        kernels: Compute the scans by our kernels where they were built, instead of by standard operators.

    Raises:
        MissingPackageError: If ONNX Runtime is not installed.
        ExportError: If the model cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError("onnxruntime", "export") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    in_memory = not isinstance(source, (str, Path))
    content = source.SerializeToString() if in_memory else str(source)
    try:
        if kernels and unavailable("native") is None:
            options.register_custom_ops_library(library_path())
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common class of their own
        name = "the exported model" if in_memory else source
        raise ExportError(f"{name}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None


def runner(
    source: str | Path | onnx.ModelProto, *, threads: int | None = None, kernels: bool = True
) -> Callable[[Tensor], list[Tensor]]:
    """A function from images to the model's results; see `session`."""
    model = session(source, threads=threads, kernels=kernels)
    name = model.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(result) for result in model.run(None, {name: images.numpy()})]

    return run
