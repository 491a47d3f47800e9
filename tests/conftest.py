"""Fixtures of all tests."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from support.golden import GOLDEN

# Without a GPU the Triton kernels run in Triton's interpreter, which it must be told before it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def released() -> dict[str, Any]:
    """Entry names, shapes and parameter counts of the authors' released classification checkpoints."""
    content: dict[str, Any] = json.loads((GOLDEN / "released.json").read_text())
    return content
