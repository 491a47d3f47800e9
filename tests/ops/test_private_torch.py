"""A PyTorch that lacks every private name that VMamba uses: everything imports and computes the same."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vmamba
from vmamba.ops import private_torch

WITHOUT = """
import builtins, sys
import torch

torch.backends.mkldnn.is_available = lambda: False
ordinary_import = builtins.__import__

def import_public(name, globals=None, locals=None, fromlist=(), level=0):
    asks = (globals or {}).get("__name__", "")
    private = any(part.startswith("_") for part in [*name.split("."), *(fromlist or ())])
    if asks == "vmamba.ops.private_torch" and name.startswith("torch") and private:
        raise ImportError(f"cannot import {fromlist} from {name}")
    return ordinary_import(name, globals, locals, fromlist, level)

builtins.__import__ = import_public
"""

IMPORT = """
import importlib, pkgutil, vmamba

for module in pkgutil.walk_packages(vmamba.__path__, "vmamba."):
    large = module.name.endswith(("__main__", ".executorch")) or ".integrations." in module.name
    if not large:
        importlib.import_module(module.name)
"""

COMPUTE = """
import torch, vmamba
from vmamba.ops import private_torch

torch.manual_seed(0)
model = vmamba.create_model("vmamba_pico", num_classes=3).eval()
images = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    print("frozen", vmamba.freeze(model)(images).flatten().tolist(), sep=";")
logits = model(images)
logits.square().sum().backward()
print("logits", logits.flatten().tolist(), sep=";")
print("gradient", model.stages[1].blocks[0].ss2d.in_proj.weight.grad.norm(dim=1).tolist(), sep=";")
print("compiled", torch.compile(model, backend="aot_eager", fullgraph=True)(images).flatten().tolist(), sep=";")
try:
    tangent = torch.func.jvp(model, (images,), (images,))[1]
except NotImplementedError as error:
    tangent = error
print(private_torch.HAS_ONEDNN_LINEAR, private_torch.is_observed(), str(tangent).splitlines()[0])
"""


def run(program: str) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_missing_names_change_no_result() -> None:
    *results, facts = run(WITHOUT + IMPORT + COMPUTE)
    *expected, _ = run(COMPUTE)
    assert facts.startswith("False True ss2d_scan: no forward-mode derivative")  # instead of zeros
    assert [line.split(";")[0] for line in results] == ["frozen", "logits", "gradient", "compiled"]
    for got, wanted in zip(results, expected, strict=True):
        assert ast.literal_eval(got.split(";")[1]) == pytest.approx(ast.literal_eval(wanted.split(";")[1]), rel=1e-4)


def private_imports(path: Path) -> list[str]:
    """Private modules and names of PyTorch that a file imports or reads from the module ``torch``."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            names.append(ast.unparse(node))
    own = [name for name in names if not name.startswith("torch.ops.aten.")]  # names of operators
    return [name for name in own if any(part.startswith("_") and part[1] != "_" for part in name.split("."))]


def test_one_file_has_them() -> None:
    root = Path(vmamba.__file__).parent
    using = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.py")) if private_imports(path)]
    assert using == [Path(private_torch.__file__).relative_to(root).as_posix()]
