"""Models as packages of AOTInductor, which PyTorch runs without this package, and C++ without Python.

A package calls PyTorch's own operators, in compiled code without Python, and for every scan one operator of the library
at `vmamba.export.library_path`, which has to be loaded before::

    torch.ops.load_library(library)
    model = torch._inductor.aoti_load_package("model.pt2")
    logits = model(images)

Kernels that Inductor would fuse are left out: they take minutes to compile and were no faster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from vmamba.errors import ExportError, OptionError
from vmamba.export import Example
from vmamba.export.remarks import without_remarks
from vmamba.files import atomic_write
from vmamba.ops.libraries import library_path
from vmamba.ops.private_torch import inductor_packages

#: Of Inductor: PyTorch's operators, no kernels of its own, and little time for the code that calls them.
_SETTINGS = {
    "fallback_by_default": True,
    "selective_decompose": True,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}

#: They remark on operators that are called, and on GPUs that are not there.
_LOGGERS = ("torch._inductor", "torch.utils.cpp_extension")


@dataclass
class TorchPackage:
    """A package of AOTInductor; see `vmamba.export.Converted`."""

    content: bytes
    nodes: int

    def __post_init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.pt2")
            path.write_bytes(self.content)
            _, load, _ = _inductor()
            self._model = load(str(path))

    def run(self, images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            results = self._model(images)
        return [results] if isinstance(results, Tensor) else list(results)

    def write(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(self.content)


def convert(example: Example) -> TorchPackage:
    """Compile a model; it takes images and returns what the model returns."""
    _load_library()
    if example.images.dtype != torch.float32:
        raise OptionError("packages of PyTorch are float32")
    program = _trace(example)
    package, _, missing_compiler = _inductor()
    settings = {"aot_inductor.metadata": dict(example.metadata)} | _SETTINGS
    with tempfile.TemporaryDirectory() as folder, without_remarks(*_LOGGERS):
        try:
            path = package(program, package_path=f"{folder}/model.pt2", inductor_configs=settings)
        except missing_compiler:
            raise ExportError("AOTInductor needs a C++ compiler; install g++ or clang++, or name one in CXX") from None
        content = Path(path).read_bytes()
    return TorchPackage(content, sum(node.op == "call_function" for node in program.graph.nodes))


def _inductor() -> tuple[Callable[..., str], Callable[[str], Any], type[Exception]]:
    try:
        return inductor_packages()
    except ImportError as error:
        raise ExportError(
            f"PyTorch {torch.__version__} has no packages of AOTInductor where they were: {error}"
        ) from None


@cache
def _load_library() -> None:
    torch.ops.load_library(library_path("torch"))
    torch.library.register_fake(
        "vmamba_cpp::ss2d_scan",
        lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    )


def _trace(example: Example) -> ExportedProgram:
    axes = {0: Dim.DYNAMIC} if "batch" in example.dynamic else {}
    if "size" in example.dynamic:
        axes |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(example.model, (example.images,), dynamic_shapes=(axes,))
    scan = torch.ops.vmamba.ss2d_scan.default
    for node in program.graph.nodes:
        if node.target is scan:
            pattern = node.args[6] if len(node.args) > 6 else node.kwargs["pattern"]
            node.target, node.args, node.kwargs = torch.ops.vmamba_cpp.ss2d_scan.default, (*node.args[:6], pattern), {}
    program.graph_module.recompile()
    return program
