"""Models as files that run without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import MissingPackageError, OptionError
from vmamba.export.verification import TOLERANCE, verification_shapes, verify
from vmamba.files import atomic_write
from vmamba.ort import runner

FORMATS = ("onnx",)
DYNAMIC = ("batch", "size")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: The file.
        error: Largest relative error against PyTorch, over all shapes that were compared.
        shapes: Shapes of the images that were compared.
        nodes: Nodes of the graph.
    """

    path: Path
    error: float
    shapes: list[tuple[int, ...]]
    nodes: int


def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",
    image_size: int | tuple[int, int] = 224,
    dynamic: Sequence[str] = DYNAMIC,
    precision: str = "float32",
    inline: bool = False,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Export a classifier, a backbone (``features_only``) or a segmenter, checked against PyTorch before it is written.

    Args:
        model: Takes images (B, C, H, W), returns a tensor or a list of them.
        path: The file; it is replaced only by a model that agrees with PyTorch.
        format: ``"onnx"``.
        image_size: Size of the example in pixels, (height, width) or one for both.
        dynamic: ``"batch"``, ``"size"``: what may differ from the example later.
        precision: ``"float32"`` or ``"float16"`` (weights and activations; the scans compute in float32).
        inline: Replace the scans' nodes by the standard operators that define them, for runtimes without functions.
        output_names: Names of the results; default: ``logits``, or ``map1``, ``map2`` … for several.
        metadata: Written into the file, values as JSON: class names, mean and std …

    Returns:
        The file, and how well it agrees.

    Raises:
        OptionError: For an unknown or impossible option.
        MissingPackageError: If a package that the format needs is not installed.
        ExportError: If the exported model does not agree with PyTorch.
        OSError: If the file cannot be written.
    """
    if format not in FORMATS:
        raise OptionError(f"unknown export format {format!r}; choose one of {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise OptionError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if unknown := set(dynamic) - set(DYNAMIC):
        raise OptionError(f"dynamic can be {' and '.join(DYNAMIC)}, got {', '.join(sorted(unknown))}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 32:
        raise OptionError(f"image_size must be at least 32 pixels, got {height}×{width}")
    try:
        from vmamba.export import onnx as onnx_format
    except ImportError as missing:
        raise MissingPackageError(str(missing.name), "export") from None

    dtype = PRECISIONS[precision]
    was_training, device = model.training, next(model.parameters()).device
    model = model.eval()
    try:
        # A batch of one would be taken for a constant.
        images = torch.randn(2 if "batch" in dynamic else 1, _in_chans(model), height, width, device=device)
        with torch.no_grad():
            results = model(images)
        names = list(output_names) if output_names else _names(results)
        proto = onnx_format.to_onnx(_in_dtype(model, dtype), images.to(dtype), dynamic=dynamic, output_names=names)
        proto = onnx_format.finish(
            proto, metadata={k: json.dumps(v) for k, v in (metadata or {}).items()}, inline=inline
        )
        shapes = verification_shapes(images.shape, dynamic)
        error = verify(model, runner(proto, kernels=False), shapes, TOLERANCE[dtype], dtype)
    finally:
        model.train(was_training)
    with atomic_write(path) as file:
        file.write(proto.SerializeToString())
    return Exported(Path(path), error, shapes, len(proto.graph.node))


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    if dtype == torch.float32:
        return model
    return deepcopy(model).to(dtype)


def _in_chans(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _names(results: Tensor | Sequence[Tensor]) -> list[str]:
    return ["logits"] if isinstance(results, Tensor) else [f"map{i + 1}" for i in range(len(results))]
