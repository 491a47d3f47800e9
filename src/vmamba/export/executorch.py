"""Models as programs of ExecuTorch, for one shape, computed by XNNPACK."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor

from vmamba.errors import OptionError
from vmamba.export import Example
from vmamba.export.associative_scan import ss2d_scan
from vmamba.files import atomic_write


@dataclass
class ExecuTorchProgram:
    """A program of ExecuTorch; see `vmamba.export.Converted`."""

    content: bytes
    nodes: int

    def run(self, images: Tensor) -> list[Tensor]:
        program = Runtime.get().load_program(self.content)
        return list(program.load_method("forward").execute([images.contiguous()]))

    def write(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(self.content)


def convert(example: Example) -> ExecuTorchProgram:
    """Lower a model; it takes images of the example's shape."""
    if example.images.dtype != torch.float32:
        raise OptionError("programs of ExecuTorch are float32")
    with torch.no_grad():
        traced = torch.export.export(example.model, (example.images,))
        traced = traced.run_decompositions({torch.ops.vmamba.ss2d_scan.default: ss2d_scan})
        edge = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
        program = edge.to_executorch()
    nodes = sum(node.op == "call_function" for node in edge.exported_program().graph.nodes)
    return ExecuTorchProgram(program.buffer, nodes)
