"""The scans as ONNX functions against the definition in float64."""

from __future__ import annotations

import pytest
import torch

from support.golden import relative_error
from support.onnx_scans import RANKS, scan_model
from support.operands import ss2d_operands
from vmamba.ops.backends import reference
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.routes import PATTERNS
from vmamba.ort import session


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_grid(pattern: str, states: int, images: int, kernels: bool) -> None:
    run = session(scan_model(pattern, states, single=images == 1), kernels=kernels)
    for height, width, step in [(1, 1, -2.0), (1, 9, -2.0), (7, 1, -2.0), (5, 6, 2.0), (14, 11, -8.0)]:
        operands = ss2d_operands(images, height, width, 5, states, 2, pattern, torch.float64, step)
        expected = reference.ss2d_scan(SS2DOperands(*operands, pattern))
        (y,) = run.run(None, {name: t.float().numpy() for name, t in zip(RANKS, operands, strict=True)})
        assert relative_error(torch.from_numpy(y), expected) < 2e-6, (height, width)
