"""The preprocessing of a classifier inside its ONNX file: pixels of any size in, as image decoders give them.

ONNX Runtime resizes 8-bit images with antialiasing as Pillow does, in integers: what comes out differs in few pixels,
mostly by one grey level.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vmamba.checkpoints.info import Preprocessing
from vmamba.errors import ExportError, OptionError
from vmamba.export import Converted
from vmamba.export.onnx import OnnxFile
from vmamba.export.onnx_scan import OPSET
from vmamba.ort import runner
from vmamba.tasks.classification.prediction import evaluation_transform

#: Name of the input: uint8 (B, H, W, 3).
PIXELS = "pixels"

# The coefficient -1/2 is Pillow's.
_MODES: dict[str, dict[str, Any]] = {
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
    "bilinear": {"mode": "linear"},
}
_SIZES = [(61, 97), (150, 120), (700, 401)]
#: Grey levels by which the average pixel may differ from Pillow's.
_TOLERANCE = 0.25


def with_preprocessing(file: Converted, preprocessing: Preprocessing) -> OnnxFile:
    """The model behind the resizing of the short side, the centre crop and the normalisation.

    Args:
        file: A model of one image size, with the input ``images``.
        preprocessing: Of its images; the crop has the size of the model's input.

    Raises:
        OptionError: For an interpolation that ONNX does not know, or images of other than three channels.
        ExportError: If the pixels differ from those that `vmamba.tasks.classification.prediction.eval_transform` gives.
    """
    assert isinstance(file, OnnxFile)
    (images,) = (value for value in file.proto.graph.input if value.name == "images")
    batch, channels, size, _ = images.type.tensor_type.shape.dim
    if channels.dim_value != 3 or len(preprocessing.mean) != 3:
        raise OptionError(f"preprocessing inside a file is for RGB images, not for {channels.dim_value} channels")
    if preprocessing.interpolation not in _MODES:
        raise OptionError(
            f"preprocessing inside a file can be {' or '.join(_MODES)}, not {preprocessing.interpolation}; leave it out"
        )
    dtype = images.type.tensor_type.elem_type
    nodes = _nodes(preprocessing, size.dim_value, dtype)
    _verify(nodes, images, preprocessing, size.dim_value)

    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    del proto.graph.input[:]
    proto.graph.input.append(_pixels(batch.dim_param or batch.dim_value))
    model = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *model])
    onnx.checker.check_model(proto, full_check=True)
    return OnnxFile(proto)


def _pixels(batch: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [batch, "height", "width", 3])


def _nodes(preprocessing: Preprocessing, crop: int, dtype: int) -> list[onnx.NodeProto]:
    """From `PIXELS` to ``images``."""
    nodes: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, result: str = "", **attributes: object) -> str:
        name = result or f"preprocessing_{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(value: object, kind: type = np.int64) -> str:
        return add("Constant", value=numpy_helper.from_array(np.array(value, dtype=kind)))

    short = constant([math.floor(crop / preprocessing.crop_pct)])
    size = add("Shape", PIXELS, start=1, end=3)
    resized = add("Div", add("Mul", size, short), add("ReduceMin", size, keepdims=1))
    sizes = add("Concat", add("Shape", PIXELS, start=0, end=1), resized, constant([3]), axis=0)
    x = add("Resize", PIXELS, "", "", sizes, antialias=1, **_MODES[preprocessing.interpolation])
    # The first row and column: half of what is left over, halves rounded to even as torchvision does.
    left_over = add("Sub", resized, constant([crop]))
    odd = add("Div", add("Mod", left_over, constant([4])), constant([3]))
    start = add("Add", add("Div", left_over, constant([2])), odd)
    x = add("Slice", x, start, add("Add", start, constant([crop])), constant([1, 2]))
    mean, std = (np.array(values) for values in (preprocessing.mean, preprocessing.std))
    x = add("Mul", add("Cast", x, to=TensorProto.FLOAT), constant(1 / (255 * std), np.float32))
    x = add("Sub", x, constant(mean / std, np.float32))
    add("Transpose", add("Cast", x, to=dtype), result="images", perm=[0, 3, 1, 2])
    return nodes


def _verify(nodes: list[onnx.NodeProto], images: onnx.ValueInfoProto, preprocessing: Preprocessing, crop: int) -> None:
    """Compare the nodes alone with the package's own preprocessing."""
    graph = helper.make_graph(nodes, "preprocessing", [_pixels(1)], [images])
    opset = [helper.make_opsetid("", OPSET)]
    run = runner(helper.make_model(graph, opset_imports=opset, ir_version=10), kernels=False)
    transform = evaluation_transform(
        {
            "input_size": (3, crop, crop),
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
        }
    )
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    random = np.random.default_rng(0)
    for height, width in _SIZES:
        patches = random.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
        (result,) = run(torch.from_numpy(np.asarray(image)[None].copy()))
        levels = float(((result[0].float() - transform(image)) * std * 255).abs().mean())
        if not levels <= _TOLERANCE:
            raise ExportError(
                f"the preprocessing in the file differs from Pillow's by {levels:.2f} grey levels "
                f"for images of {height}×{width}; nothing was written"
            )
