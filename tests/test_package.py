"""The package as a whole: what importing it costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vmamba

HEAVY = ("triton", "transformers", "matplotlib", "sklearn", "scipy", "pandas")

# Modules that `import timm` (and torchvision with it) brings in are not ours to avoid.
PROBE = """
import sys, timm, torchvision
before = set(sys.modules)
import vmamba, torch
print(*sorted(m for m in {heavy} if m in set(sys.modules) - before))
assert not torch.cuda.is_initialized()
"""


@pytest.mark.slow
def test_import_is_lean() -> None:
    code = PROBE.replace("{heavy}", repr(HEAVY))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_public_names() -> None:
    assert vmamba.__all__ == ["VMamba", "VMambaConfig", "create_model", "freeze", "list_models", "load_weights", "ops"]
    for name in vmamba.__all__:
        assert getattr(vmamba, name).__doc__
