"""The cost of the scan for counters that look for layers or operators they know.

thop: ``profile(model, (images,), custom_ops=THOP)``. ptflops: ``get_model_complexity_info(model, (3, 224, 224),
backend=backend, custom_modules_hooks=PTFLOPS[backend])``. fvcore and `torch.utils.flop_counter` need neither: the
operators carry their formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.analysis.cost import ss2d_macs
from vmamba.layers.scan import SelectiveScan2d


def _macs(operands: tuple[Any, ...]) -> int:
    """Multiply-adds of a scan with these operands."""
    return ss2d_macs(*(operand.shape if isinstance(operand, Tensor) else operand for operand in operands))


def _thop(module: Any, operands: tuple[Any, ...], output: Tensor) -> None:
    module.total_ops += _macs(operands)


def _ptflops(module: Any, operands: tuple[Any, ...], output: Tensor) -> None:
    module.__flops__ += _macs(operands)


#: For ``thop.profile(custom_ops=…)``.
THOP: dict[type[nn.Module], Callable[..., None]] = {SelectiveScan2d: _thop}

#: For ``ptflops.get_model_complexity_info(custom_modules_hooks=…)``, by its ``backend``.
PTFLOPS: dict[str, dict[Any, Callable[..., Any]]] = {
    "pytorch": {SelectiveScan2d: _ptflops},
    "aten": {torch.ops.vmamba.ss2d_scan: lambda operands, outputs: _macs(operands)},
}
