"""Models as files that run without this package."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vmamba.checkpoints.info import FORMAT, ModelInfo, Preprocessing
from vmamba.errors import MissingPackageError, OptionError
from vmamba.export.verification import DETECTIONS, QUANTIZED, TOLERANCE, verification_shapes, verify
from vmamba.ops.libraries import library_path as library_path
from vmamba.tasks.detection.exported import RESULTS, SingleImageDetector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN

#: Precisions, and the dtype of the images of their files.
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "int8": torch.float32}


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        module: Of this package, with a function ``convert``.
        dynamic: What may differ from the example in its files.
        extra: The extra that installs what it needs.
        suffix: That the names of its files must have; empty for any.
    """

    module: str
    dynamic: tuple[str, ...] = ()
    extra: str = "export"
    suffix: str = ""


FORMATS = {
    "onnx": Format("onnx", ("batch", "size")),
    "openvino": Format("openvino", extra="openvino", suffix=".xml"),
    "torch": Format("aotinductor", ("batch", "size"), suffix=".pt2"),
    "executorch": Format("executorch", extra="executorch", suffix=".pte"),
}


@dataclass(frozen=True)
class Example:
    """A model on its way into a file.

    Attributes:
        model: In evaluation mode, of the precision asked for.
        images: Example, (B, C, H, W).
        dynamic: What may differ from it: ``"batch"``, ``"size"``.
        output_names: A name for each result.
        metadata: For the file, values as JSON.
        inline: Standard operators alone.
        calibration: Batches of images that calibrate 8-bit products; none to leave them as they are.
    """

    model: nn.Module
    images: Tensor
    dynamic: Sequence[str]
    output_names: Sequence[str]
    metadata: Mapping[str, str]
    inline: bool = False
    calibration: Sequence[Tensor] = ()


class Converted(Protocol):
    """A model in another format, not yet in a file."""

    @property
    def nodes(self) -> int:
        """Nodes of the graph."""

    def run(self, images: Tensor) -> Sequence[Tensor]:
        """The results for images."""

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""


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
    dynamic: Sequence[str] | None = None,
    precision: str = "float32",
    inline: bool = False,
    with_preprocessing: bool = False,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    calibration: Sequence[Tensor] = (),
) -> Exported:
    """Export a classifier, backbone (``features_only``), detector or segmenter, checked against PyTorch before it is
    written.

    Args:
        model: Takes images (B, C, H, W), returns a tensor or a list of them; or a `MaskRCNN`, whose file takes one
            image and gives the boxes, scores, labels and masks of `vmamba.tasks.detection.detections.Detections`.
        path: The file; it is replaced only by a model that agrees with PyTorch.
        format: One of `FORMATS`.
        image_size: Size of the example in pixels, (height, width) or one for both.
        dynamic: ``"batch"``, ``"size"``: what may differ from the example later; by default what can. Detectors
            take single images, files of OpenVINO one shape.
        precision: ``"float32"``; ``"float16"`` (weights and activations; the scans compute in float32); or ``"int8"``,
            of ONNX (linear layers and dense convolutions; all else in float32).
        inline: Replace the scans' nodes by the standard operators that define them, for runtimes without functions.
        with_preprocessing: Put resizing, centre crop and normalisation of a classifier into the file, which then
            takes ``pixels``, uint8 (B, H, W, 3) of any size; what `model.info` says, or ImageNet's. Of ONNX.
        output_names: Names of the results; default: ``logits``, or ``map1``, ``map2`` … for several.
        metadata: Written into the file where the format has a place, values as JSON; by default what ``model.info``
            says: task, class names, preprocessing.
        calibration: Batches (B, C, H, W) of real images, preprocessed, for ``"int8"``: the ranges of activations are
            taken from them, and `Exported.error` is that of their results.

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
    kind = FORMATS[format]
    if precision not in PRECISIONS:
        raise OptionError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    detector = isinstance(model, MaskRCNN)
    dynamic = _dynamic(dynamic, format, detector)
    if detector and precision != "float32":
        raise OptionError(f"detectors are exported in float32, not in {precision}")
    if detector and kind.module not in ("onnx", "openvino"):
        raise OptionError(f"detectors are exported to ONNX, not to {format}: what they find is no fixed number")
    if precision == "int8" and format != "onnx":
        raise OptionError(f"int8 is for ONNX, not for {format}")
    if (precision == "int8") != bool(calibration):
        raise OptionError("int8 needs images to calibrate it with, and nothing else takes them")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 32:
        raise OptionError(f"image_size must be at least 32 pixels, got {height}×{width}")
    info = getattr(model, "info", None)
    if with_preprocessing:
        if format != "onnx" or getattr(model, "task", "classification") != "classification":
            raise OptionError("preprocessing inside a file is for classifiers in ONNX")
        if height != width:
            raise OptionError(f"preprocessing inside a file crops squares, got the image_size {height}×{width}")
        dynamic = tuple(name for name in dynamic if name != "size")  # of the crop; images may have any
    if not str(path).endswith(kind.suffix):
        raise OptionError(f"{path}: the name of a file of {format} must end in {kind.suffix}")
    try:
        convert: Callable[[Example], Converted] = importlib.import_module(f"vmamba.export.{kind.module}").convert
    except ImportError as missing:
        raise MissingPackageError(str(missing.name).partition(".")[0], kind.extra) from None

    if metadata is None:
        metadata = described(info)
    dtype = PRECISIONS[precision]
    # A copy, so that the model's modes stay as they are.
    whole = deepcopy(SingleImageDetector(model) if isinstance(model, MaskRCNN) else model).eval()
    # A batch of one would be taken for a constant.
    size = (2 if "batch" in dynamic else 1, _in_chans(model), height, width)
    images = torch.randn(size, device=next(model.parameters()).device)
    with torch.no_grad():
        names = output_names or (RESULTS if detector else _names(whole(images)))
    example = Example(
        deepcopy(whole).to("cpu", dtype),
        images.to("cpu", dtype),
        dynamic,
        names,
        {name: json.dumps(value) for name, value in metadata.items()},
        inline,
        calibration,
    )
    converted = convert(example)
    shapes = verification_shapes(images.shape, dynamic)
    if precision == "int8":
        error = verify(whole, converted.run, calibration, QUANTIZED)
    else:
        examples = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
        error = verify(whole, converted.run, examples, DETECTIONS if detector else TOLERANCE[dtype], dtype)
    if with_preprocessing:
        from vmamba.export import onnx_preprocessing

        converted = onnx_preprocessing.with_preprocessing(
            converted, getattr(info, "preprocessing", None) or Preprocessing()
        )
    converted.write(Path(path))
    return Exported(Path(path), error, shapes, converted.nodes)


def described(info: ModelInfo | None) -> dict[str, Any]:
    """Metadata for users of a file: format of the description, task, class names, preprocessing."""
    if info is None:
        return {}
    prepare = info.preprocessing and dataclasses.asdict(info.preprocessing)
    known = {"task": info.task, "class_names": info.class_names, "preprocessing": prepare}
    return {"format": FORMAT} | {name: value for name, value in known.items() if value}


def _dynamic(dynamic: Sequence[str] | None, format: str, detector: bool) -> tuple[str, ...]:
    possible = tuple(name for name in FORMATS[format].dynamic if not (detector and name == "batch"))
    if dynamic is None:
        return possible
    if unknown := set(dynamic) - set(possible):
        of = f"a detector in {format}" if detector else format
        if not possible:
            raise OptionError(f"files of {format} are for one shape of images; leave {', '.join(sorted(unknown))} out")
        raise OptionError(
            f"dynamic of {of} can be {' and '.join(possible) or 'nothing'}, got {', '.join(sorted(unknown))}"
        )
    return tuple(dynamic)


def _in_chans(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def _names(results: Tensor | Sequence[Tensor]) -> list[str]:
    return ["logits"] if isinstance(results, Tensor) else [f"map{i + 1}" for i in range(len(results))]
