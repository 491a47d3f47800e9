"""Models as ONNX: standard operators, and nodes for scans and some layers with their definitions beside them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import onnx.inliner
import torch
from onnx import defs
from onnxscript import ir, opset20, values
from torch import Tensor, nn
from torch.export import Dim

from vmamba.export import Example
from vmamba.export.onnx_layers import join_layers
from vmamba.export.onnx_scan import DOMAIN, OPSET, VERSION, function_name, scan_function
from vmamba.export.quantization import quantize_products
from vmamba.export.remarks import without_remarks
from vmamba.files import atomic_write
from vmamba.ort import runner

_OPERANDS = ("x", "dbc", "dt_weight", "A", "D", "dt_bias")


@dataclass(frozen=True)
class OnnxFile:
    """A model as ONNX; see `vmamba.export.Converted`."""

    proto: onnx.ModelProto

    @property
    def nodes(self) -> int:
        return len(self.proto.graph.node)

    def run(self, images: Tensor) -> list[Tensor]:
        return runner(self.proto, kernels=False)(images)

    def write(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(self.proto.SerializeToString())


def convert(example: Example) -> OnnxFile:
    """Translate a model; its input is ``images``."""
    axes = {}
    if "batch" in example.dynamic:
        axes[0] = Dim.DYNAMIC
    if "size" in example.dynamic:
        axes |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    proto = _translate(example.model, (example.images,), ["images"], example.output_names, (axes,))
    proto = _finish(proto, example.metadata)
    if example.calibration:
        proto = quantize_products(proto, example.calibration)
    if example.inline:
        proto = onnx.inliner.inline_local_functions(proto)
    return _checked(proto)


def translate(
    model: nn.Module, inputs: tuple[Tensor, ...], input_names: Sequence[str], output_names: Sequence[str]
) -> OnnxFile:
    """Translate a module of any inputs, for the shapes of these; large graphs are left for the runtime to optimise."""
    return _checked(_finish(_translate(model, inputs, input_names, output_names, optimize=False), {}))


def _checked(proto: onnx.ModelProto) -> OnnxFile:
    onnx.checker.check_model(proto, full_check=True)
    return OnnxFile(proto)


def _translate(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: tuple[Mapping[int, Any], ...] | None = None,
    optimize: bool = True,
) -> onnx.ModelProto:
    used: dict[str, onnx.FunctionProto] = {}
    with without_remarks("onnx_ir", "torch.onnx"), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        program = torch.onnx.export(
            model,
            inputs,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=OPSET,
            custom_translation_table={
                torch.ops.vmamba.ss2d_scan.default: _translation(used),
                torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d,
            },
            optimize=optimize,
            verbose=False,
        )
        assert program is not None
        layers = join_layers(program.model)
    proto = program.model_proto
    proto.functions.extend([*used.values(), *layers])
    return proto


def _translation(used: dict[str, onnx.FunctionProto]) -> Callable[..., Any]:
    """Translate `vmamba.ops.ss2d_scan` into one node, adding its function to `used`."""

    def translate(x: Any, dbc: Any, dt_weight: Any, A: Any, D: Any, dt_bias: Any, pattern: str = "cross") -> Any:
        states = int(A.shape[2])
        name = function_name(pattern, states)
        used.setdefault(name, scan_function(pattern, states, single=x.shape[0] == 1))
        storage = x.dtype
        operands = [_cast(t, ir.DataType.FLOAT) for t in (x, dbc, dt_weight, A, D, dt_bias)]
        y = _scan_operator(name)(*operands)
        return y if storage == ir.DataType.FLOAT else opset20.Cast(y, to=storage)

    return translate


def _adaptive_avg_pool2d(x: Any, output_size: Sequence[int]) -> Any:
    """Averages over cells of a map of any size; the exporter's own translation is right for the example's alone."""
    if list(output_size) == [1, 1]:
        return opset20.ReduceMean(x, opset20.Constant(value_ints=[2, 3]))
    height, width = (opset20.Shape(x, start=axis, end=axis + 1) for axis in (2, 3))
    rows = _cells(height, output_size[0], x.dtype)  # (cells, H)
    columns = opset20.Transpose(_cells(width, output_size[1], x.dtype), perm=[1, 0])
    return opset20.MatMul(opset20.MatMul(rows, x), columns)


def _cells(size: Any, count: int, dtype: ir.DataType) -> Any:
    """(count, size): row i averages over the elements ``⌊i·size/count⌋ … ⌈(i+1)·size/count⌉ - 1``."""
    cell = opset20.Constant(value_ints=list(range(count)))
    one, number = opset20.Constant(value_ints=[1]), opset20.Constant(value_ints=[count])
    start = opset20.Div(opset20.Mul(cell, size), number)
    end = opset20.Div(opset20.Add(opset20.Mul(opset20.Add(cell, one), size), opset20.Sub(number, one)), number)
    start, end = (opset20.Unsqueeze(t, one) for t in (start, end))
    zero = opset20.Constant(value_int=0)
    element = opset20.Range(zero, opset20.Squeeze(size), opset20.Constant(value_int=1))
    inside = opset20.And(opset20.GreaterOrEqual(element, start), opset20.Less(element, end))
    return opset20.Div(opset20.Cast(inside, to=dtype), opset20.Cast(opset20.Sub(end, start), to=dtype))


def _cast(tensor: Any, dtype: ir.DataType) -> Any:
    return tensor if tensor.dtype == dtype else opset20.Cast(tensor, to=dtype)


def _scan_operator(name: str) -> values.Op:
    parameter = defs.OpSchema.FormalParameter
    schema = defs.OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[parameter(operand, "T") for operand in _OPERANDS],
        outputs=[parameter("y", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
    )
    return values.Op(values.Opset(DOMAIN, VERSION), name, schema)


def _finish(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Name the producer and the free axes, and set the metadata."""
    proto.producer_name = "vmamba"
    axes = zip(proto.graph.input[0].type.tensor_type.shape.dim, ("batch", "channels", "height", "width"), strict=True)
    names = {axis.dim_param: name for axis, name in axes if axis.dim_param}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    del proto.metadata_props[:]
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]  # the exporter's notes: stack traces with paths of the machine it ran on
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto
