"""The scans as ONNX functions against the definition in float64."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from support.golden import relative_error
from support.operands import ss2d_operands
from vmamba.export.onnx_scan import DOMAIN, OPSET, VERSION, scan_function
from vmamba.ops.backends import reference
from vmamba.ops.operands import SS2DOperands
from vmamba.ops.routes import PATTERNS
from vmamba.ort import session

RANKS = {"x": 4, "dbc": 5, "dt_weight": 3, "A": 3, "D": 2, "dt_bias": 2}


def scan_model(pattern: str, states: int) -> onnx.ModelProto:
    """One node and its function."""
    function = scan_function(pattern, states)

    def declared(name: str, rank: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)

    node = helper.make_node(function.name, list(RANKS), ["y"], domain=DOMAIN)
    graph = helper.make_graph([node], "scan", [declared(*item) for item in RANKS.items()], [declared("y", 4)])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_any_grid(pattern: str, states: int, kernels: bool) -> None:
    run = session(scan_model(pattern, states), kernels=kernels)
    for height, width, step in [(1, 1, -2.0), (1, 9, -2.0), (7, 1, -2.0), (5, 6, 2.0), (14, 11, -8.0)]:
        operands = ss2d_operands(2, height, width, 5, states, 2, pattern, torch.float64, step)
        expected = reference.ss2d_scan(SS2DOperands(*operands, pattern))
        (y,) = run.run(None, {name: t.float().numpy() for name, t in zip(RANKS, operands, strict=True)})
        assert relative_error(torch.from_numpy(y), expected) < 2e-6, (height, width)
