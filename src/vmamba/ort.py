"""Exported models in ONNX Runtime.

Any runtime computes the scans of an exported file by the standard operators that are in it. ONNX Runtime on a CPU uses
our kernels instead where their library is registered::

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(vmamba.ort.library_path())

`session` does that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vmamba.checkpoints.info import FORMAT, ModelInfo
from vmamba.errors import ExportError, MissingPackageError
from vmamba.ops import libraries
from vmamba.ops.backends import unavailable

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def library_path() -> str:
    """Path of the library that computes the operators of the domain ``vmamba``, for ONNX Runtime 1.17 or later.

    Raises:
        ExportError: If it was not built, with the reason.
    """
    return libraries.library_path("onnxruntime")


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
        ExportError: If the model, or the library of our kernels, cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError("onnxruntime", "export") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    from_file = isinstance(source, (str, Path))
    content = str(source) if isinstance(source, (str, Path)) else source.SerializeToString()
    if kernels and unavailable("native") is None:
        library = library_path()
        try:
            options.register_custom_ops_library(library)
        except Exception as error:  # the runtime's exceptions have no common class of their own
            reason = str(error).splitlines()[0]
            raise ExportError(f"{library}: ONNX Runtime {onnxruntime.__version__} refuses it: {reason}") from None
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common class of their own
        name = source if from_file else "the exported model"
        raise ExportError(f"{name}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None


_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class OnnxModel(nn.Module):
    """An exported model as a module: images (B, C, H, W) on the CPU → a tensor, or a list of them.

    Attributes:
        info: Description of the model, as far as the file has it.
        num_classes: Last axis of the first result; 0 where it may vary.
        takes_pixels: True for a file with its preprocessing inside, whose images are uint8 (B, H, W, 3).

    Args:
        path: The file.
        threads: See `session`.

    Raises:
        MissingPackageError: If ONNX Runtime is not installed.
        ExportError: If the file cannot be loaded, or its description is not valid.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        self._session = session(path, threads=threads)
        self.info = self._read_info()
        self.pretrained_cfg = self.info.pretrained_cfg
        self.takes_pixels = self._session.get_inputs()[0].type == "tensor(uint8)"
        classes = self._session.get_outputs()[0].shape[-1]
        self.num_classes = classes if isinstance(classes, int) else 0

    def _read_info(self) -> ModelInfo:
        entries = self._session.get_modelmeta().custom_metadata_map
        fields = {name: entries[name] for name in ("format", "task", "class_names", "preprocessing") if name in entries}
        try:
            return ModelInfo.from_json(json.dumps({"format": FORMAT} | {k: json.loads(v) for k, v in fields.items()}))
        except ValueError as error:
            raise ExportError(f"{self.path}: {error}") from None

    def forward(self, images: Tensor) -> Any:
        (expected,) = (i.shape for i in self._session.get_inputs())
        wrong = [(axis, want) for axis, want in enumerate(expected) if want not in (images.shape[axis], str(want))]
        if wrong == [(0, 1)]:  # a file for single images
            return torch.cat([self(image) for image in images.split(1)])
        if wrong:
            raise ExportError(
                f"{self.path}: takes images of shape {_shape(expected)}, got {_shape(images.shape)}; "
                "export it with another --image-size, or with --dynamic batch,size"
            )
        (name,) = (i.name for i in self._session.get_inputs())
        dtype = _DTYPES[self._session.get_inputs()[0].type]
        try:
            results = self._session.run(None, {name: images.numpy().astype(dtype, copy=False)})
        except Exception as error:  # the runtime's exceptions have no common class of their own
            raise ExportError(f"{self.path}: ONNX Runtime cannot compute it: {str(error).splitlines()[0]}") from None
        tensors = [torch.from_numpy(result) for result in results]
        return tensors[0] if len(tensors) == 1 else tensors


def _shape(shape: Sequence[object]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def runner(
    source: str | Path | onnx.ModelProto, *, threads: int | None = None, kernels: bool = True
) -> Callable[[Tensor], list[Tensor]]:
    """A function from images to the model's results; see `session`."""
    model = session(source, threads=threads, kernels=kernels)
    name = model.get_inputs()[0].name

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(result) for result in model.run(None, {name: images.numpy()})]

    return run
