"""Exported files in the place of checkpoints: ``--engine onnxruntime``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmamba.errors import OptionError

if TYPE_CHECKING:
    from vmamba.ort import OnnxModel

ENGINES = ("pytorch", "onnxruntime")


def add_engine(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add ``--engine``, with `more` engines of the command's own."""
    parser.add_argument(
        "--engine",
        choices=(*ENGINES, *more),
        default="pytorch",
        help="onnxruntime takes a file of 'vmamba export' as --checkpoint, and computes on the CPU",
    )


def exported_model(options: argparse.Namespace, task: str) -> OnnxModel | None:
    """The exported file, where ONNX Runtime is the engine.

    Raises:
        OptionError: For options that have no meaning then, or a file of another task.
        ExportError: If the file cannot be loaded.
    """
    if options.engine != "onnxruntime":
        return None
    from vmamba.ort import OnnxModel

    if options.checkpoint is None or options.model or options.device not in (None, "cpu"):
        raise OptionError("--engine onnxruntime needs --checkpoint FILE.onnx, and takes neither --model nor --device")
    if options.precision != "float32":
        raise OptionError(
            f"--engine onnxruntime computes in the precision of its file; give --precision {options.precision} to "
            "'vmamba export'"
        )
    model = OnnxModel(options.checkpoint)
    if model.info.task != task:
        raise OptionError(f"{options.checkpoint}: is for {model.info.task}, not for {task}")
    return model
