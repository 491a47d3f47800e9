"""`install`: put the stand-ins where Python looks for modules, behind everything else."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch

from vmamba.compat import cross_scan

#: Every folder or file here is a module under somebody else's name.
STANDINS = Path(__file__).parent / "standins"

_logger = logging.getLogger("vmamba.compat")


def install() -> list[str]:
    """Serve `mamba_ssm`, `selective_scan`, `selective_scan_cuda` and its variants, and `csm_triton` where missing.

    The stand-ins lie in a folder at the end of ``sys.path``, so that a real package always comes first, one installed
    later, too; worker processes inherit it. The first call logs one line that names what was missing.

    The authors' ``csm_triton.py`` is a file of each network and cannot run without a GPU: where there is none, ours
    comes in its place, for any package that imports one.

    Returns:
        Names of the top-level modules that are served by us.
    """
    first = str(STANDINS) not in sys.path
    if first:
        sys.path.append(str(STANDINS))
        sys.meta_path.insert(0, _CrossScanFinder())
    served = [name for name in names() if _is_ours(name)]
    if first and served:
        _logger.warning("%s: not installed; vmamba %s", ", ".join(served), "stands in")
    return served


def names() -> list[str]:
    """Names of the top-level modules that have a stand-in."""
    return sorted(
        path.stem
        for path in STANDINS.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    )


def _is_ours(name: str) -> bool:
    loaded = sys.modules.get(name)
    origin = getattr(loaded, "__file__", None) if loaded is not None else getattr(find_spec(name), "origin", None)
    return origin is not None and STANDINS in Path(origin).parents


class _CrossScanFinder:
    """Finds ``package.csm_triton`` where no device can run its kernels: what it defines, with our functions in it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or not fullname.endswith(".csm_triton") or torch.cuda.is_available():
            return None
        own = PathFinder.find_spec(fullname, path, target)
        if own is None or own.loader is None:
            return spec_from_file_location(fullname, STANDINS / "csm_triton.py")
        own.loader = _WithOurFunctions(own.loader)
        return own


class _WithOurFunctions(Loader):
    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with contextlib.suppress(ImportError):  # of Triton
            self.own.exec_module(module)
        for name in cross_scan.__all__:
            setattr(module, name, getattr(cross_scan, name))
