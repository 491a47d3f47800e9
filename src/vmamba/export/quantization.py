"""Linear layers and dense convolutions of an ONNX file in 8-bit integers, the rest as it was."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from vmamba.export.remarks import without_remarks


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # of the runtime, untyped
    def __init__(self, batches: Sequence[Tensor]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        return None if batch is None else {"images": batch.numpy()}


def quantize_products(proto: onnx.ModelProto, batches: Sequence[Tensor]) -> onnx.ModelProto:
    """Quantise linear layers and dense convolutions: weights by output channel, activations by their range on images.

    The scans, their projections of Δ among them, norms and depthwise convolutions stay in float. So do the results of
    linear layers: a runtime then needs one pass for product and bias, and what follows is not rounded.

    Args:
        proto: A model with the input ``images``, float32.
        batches: Images (B, C, H, W) as the model takes them.
    """
    linear = ["MatMul", "Gemm"]
    with tempfile.TemporaryDirectory() as folder, without_remarks(""):  # advice about preprocessing that has been done
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(proto, source)
        quantize_static(
            source,
            target,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*linear, "Conv"],
            nodes_to_exclude=_depthwise(proto),
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": linear},
        )
        quantized = onnx.load(target)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(proto.metadata_props)
    return quantized


def _depthwise(proto: onnx.ModelProto) -> list[str]:
    """Names of the convolutions in which a group has one channel."""
    channels = {weight.name: weight.dims[1] for weight in proto.graph.initializer if len(weight.dims) > 1}
    return [node.name for node in proto.graph.node if node.op_type == "Conv" and channels[node.input[1]] == 1]
