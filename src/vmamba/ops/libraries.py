"""The C++ kernels as libraries for programs that do not import this package."""

from __future__ import annotations

from vmamba.errors import ExportError
from vmamba.ops.backends import unavailable

_BUILD = b"vmamba operators, interface 2"

#: Runtimes that have one, as they are called in messages.
RUNTIMES = {"onnxruntime": "ONNX Runtime", "torch": "libtorch"}


def library_path(runtime: str) -> str:
    """Path of the library of operators for one of `RUNTIMES`.

    Raises:
        ExportError: If it was not built, with the reason, or belongs to another version of this package.
    """
    title = RUNTIMES[runtime]
    if reason := unavailable("native"):
        raise ExportError(f"no operators for {title}: {reason}")
    from vmamba.ops.backends.native import LIBRARIES

    library = next(LIBRARIES.glob(f"*vmamba_{runtime}.*"), None)
    if library is None:
        raise ExportError(f"no operators for {title} in {LIBRARIES}; reinstall vmamba where GCC or Clang is present")
    if _BUILD not in library.read_bytes():
        raise ExportError(f"{library}: operators of another version of vmamba; reinstall vmamba to build them anew")
    return str(library)
