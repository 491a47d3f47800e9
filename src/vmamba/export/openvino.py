"""Models as OpenVINO's intermediate representation."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import openvino
import torch
from torch import Tensor

from vmamba.export import Example
from vmamba.export.onnx import convert as convert_to_onnx
from vmamba.files import atomic_write

#: Some processors would compute in bfloat16 unasked.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


@dataclass
class OpenVinoFile:
    """A model of OpenVINO; see `vmamba.export.Converted`."""

    model: openvino.Model

    @property
    def nodes(self) -> int:
        return len(self.model.get_ordered_ops())

    @cached_property
    def _compiled(self) -> openvino.CompiledModel:
        return openvino.Core().compile_model(self.model, "CPU", SETTINGS)

    def run(self, images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(result) for result in self._compiled([images.numpy()]).values()]

    def write(self, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder, "model.xml")
            openvino.save_model(self.model, saved, compress_to_fp16=False)
            for suffix in (".bin", ".xml"):
                with open(saved.with_suffix(suffix), "rb") as source, atomic_write(path.with_suffix(suffix)) as file:
                    shutil.copyfileobj(source, file)


def convert(example: Example) -> OpenVinoFile:
    """Translate a model by way of ONNX; OpenVINO has no functions, so its scans are standard operators.

    The file is for the example's shape: OpenVINO 2026.4 computes some scans of a free shape wrongly, or not at all.
    """
    content = convert_to_onnx(replace(example, inline=True)).proto.SerializeToString()
    model = openvino.Core().read_model(content, b"")
    model.reshape(list(example.images.shape))
    for name, value in example.metadata.items():
        model.set_rt_info(value, ["vmamba", name])
    return OpenVinoFile(model)
