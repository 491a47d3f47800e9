"""A function of exported files, a scan above all, as an ONNX model of its own."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from vmamba.export.onnx_scan import DOMAIN, OPSET, VERSION, scan_function

#: Operands and their numbers of axes.
RANKS = {"x": 4, "dbc": 5, "dt_weight": 3, "A": 3, "D": 2, "dt_bias": 2}


def scan_model(pattern: str, states: int, single: bool = False) -> onnx.ModelProto:
    """One node and its function."""
    return function_model(scan_function(pattern, states, single), RANKS)


def function_model(function: onnx.FunctionProto, ranks: dict[str, int], **attributes: int) -> onnx.ModelProto:
    """One node, of operands with these numbers of axes and a result with four, and its function."""

    def declared(name: str, rank: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)

    node = helper.make_node(function.name, list(ranks), ["y"], domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], "scan", [declared(*item) for item in ranks.items()], [declared("y", 4)])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model
