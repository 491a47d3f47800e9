"""The scan of logarithmic depth against the definition in float64."""

from __future__ import annotations

import pytest
import torch

from support.golden import relative_error
from support.operands import ss2d_operands
from vmamba.export.associative_scan import ss2d_scan
from vmamba.ops.backends import reference
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.routes import PATTERNS


@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_grid(pattern: str, states: int) -> None:
    for height, width, step in [(1, 1, -2.0), (1, 9, -2.0), (7, 1, -2.0), (5, 6, 2.0), (14, 11, -8.0)]:
        operands = ss2d_operands(2, height, width, 5, states, 2, pattern, torch.float64, step)
        expected = reference.ss2d_scan(SS2DOperands(*operands, pattern))
        assert relative_error(ss2d_scan(*operands, pattern), expected) < 1e-12, (height, width)
        single = ss2d_scan(*(t.float() for t in operands), pattern)
        assert relative_error(single, expected) < 2e-6, (height, width)
