"""Layers between the scans as ONNX functions: the depthwise convolution with SiLU, and a bias with GELU.

Runtimes take several passes over memory for each, and transpose or reorder tokens around a convolution of maps. One
that has a kernel named like the function reads tokens and writes them, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper
from onnxscript import ir
from onnxscript.ir.passes import common as passes
from onnxscript.rewriter import pattern

from vmamba.export.onnx_scan import DOMAIN, OPSET, VERSION


def depthwise_silu_function() -> onnx.FunctionProto:
    """x (B, H, W, C), weight (9, C) and bias (C) → SiLU of the convolution with zeros around the map, (B, H, W, C)."""
    shape = numpy_helper.from_array(np.array([-1, 1, 3, 3], dtype=np.int64))
    conv = _node("Conv", ["map", "kernel", "bias"], "convolved", pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    conv.attribute.append(AttributeProto(name="group", ref_attr_name="channels", type=AttributeProto.INT))
    nodes = [
        _node("Transpose", ["weight"], "filters", perm=[1, 0]),
        _node("Constant", [], "shape", value=shape),
        _node("Reshape", ["filters", "shape"], "kernel"),
        _node("Transpose", ["x"], "map", perm=[0, 3, 1, 2]),
        conv,
        _node("Transpose", ["convolved"], "z", perm=[0, 2, 3, 1]),
        _node("Sigmoid", ["z"], "gate"),
        _node("Mul", ["z", "gate"], "y"),
    ]
    return _function("DepthwiseSilu", ["x", "weight", "bias"], nodes, ["channels"])


def bias_gelu_function() -> onnx.FunctionProto:
    """x (…, C) and bias (C) → GELU of their sum, (…, C)."""
    return _function("BiasGelu", ["x", "bias"], [_node("Add", ["x", "bias"], "z"), _node("Gelu", ["z"], "y")])


def join_layers(model: ir.Model) -> list[onnx.FunctionProto]:
    """Make one node of every such pair of layers that computes in float32; the functions of these nodes."""
    rules: dict[Callable[[], onnx.FunctionProto], pattern.RewriteRule] = {
        depthwise_silu_function: pattern.RewriteRule(_convolution_silu, _depthwise_silu, _is_depthwise),
        bias_gelu_function: pattern.RewriteRule(_sum_gelu, _bias_gelu, _is_bias),
    }
    used = [function() for function, rule in rules.items() if pattern.RewriteRuleSet([rule]).apply_to_model(model)]
    passes.RemoveUnusedNodesPass()(model)
    return used


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


def _function(
    name: str, inputs: list[str], nodes: list[onnx.NodeProto], attributes: list[str] | None = None
) -> onnx.FunctionProto:
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, name, inputs, ["y"], nodes, opset, attributes)


def _convolution_silu(op: Any, x: Any, weight: Any) -> Any:
    maps = op.Transpose(x, perm=[0, 3, 1, 2])
    z = op.Transpose(op.Conv(maps, weight, _allow_other_inputs=True, _outputs=["convolved"]), perm=[0, 2, 3, 1])
    return op.Mul(z, op.Sigmoid(z))


def _is_depthwise(context: Any, x: ir.Value, weight: ir.Value, convolved: ir.Value, **_: Any) -> bool:
    kernel, conv = ir.convenience.get_const_tensor(weight), convolved.producer()
    if kernel is None or conv is None:
        return False
    plain = {"pads": (1, 1, 1, 1), "strides": (1, 1), "dilations": (1, 1)}
    same = all(tuple(conv.attributes[name].as_ints()) == value for name, value in plain.items())
    groups = conv.attributes["group"].as_int()
    return same and kernel.shape == (groups, 1, 3, 3) and kernel.dtype == ir.DataType.FLOAT


def _depthwise_silu(op: Any, x: ir.Value, weight: ir.Value, convolved: ir.Value, **_: Any) -> ir.Value:
    kernel, conv = ir.convenience.get_const_tensor(weight), convolved.producer()
    assert kernel is not None
    assert conv is not None
    assert weight.name is not None
    channels = kernel.shape[0]
    name = weight.name.removesuffix(".weight")

    def constant(value: np.ndarray, part: str) -> ir.Value:
        return op.initializer(ir.tensor(np.ascontiguousarray(value)), f"{name}.{part}")

    filters = constant(kernel.numpy().reshape(channels, 9).T, "filters")
    bias = conv.inputs[2] if len(conv.inputs) > 2 else constant(np.zeros(channels, np.float32), "bias")
    return op.DepthwiseSilu(x, filters, bias, channels=channels, _domain=DOMAIN, _version=VERSION)


def _sum_gelu(op: Any, x: Any, bias: Any) -> Any:
    return op.Gelu(op.Add(x, bias), approximate="none")


def _is_bias(context: Any, x: ir.Value, bias: ir.Value, **_: Any) -> bool:
    tensor = ir.convenience.get_const_tensor(bias)
    if tensor is None or tensor.shape.rank() != 1 or tensor.dtype != ir.DataType.FLOAT:
        return False
    return tensor.shape[0] > 1  # one number may be for all channels


def _bias_gelu(op: Any, x: ir.Value, bias: ir.Value, **_: Any) -> ir.Value:
    return op.BiasGelu(x, bias, _domain=DOMAIN, _version=VERSION)
