"""Launching kernels: on the device of their operands, compiled or interpreted, or recorded into a graph."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

from vmamba.ops.private_torch import FakeTensor, FunctionalTensor

#: Whether kernels run in Triton's interpreter, on CPU tensors: decided by TRITON_INTERPRET=1 before triton is imported.
INTERPRETED: bool = triton.knobs.runtime.interpret


def launch(kernel: Any, grid: tuple[int, ...], operands: Sequence[Any], warps: int, **constants: Any) -> None:
    """Run a kernel on the operands' device, or record it where they are being traced.

    Args:
        kernel: A function of Triton.
        grid: Programs.
        operands: Tensors and numbers, in the order of the kernel's parameters.
        warps: Of 32 threads, per program.
        constants: The kernel's ``constexpr`` parameters.

    Raises:
        ValueError: For more programs on the second or third axis than a GPU takes.
    """
    if any(isinstance(programs, int) and programs > 65535 for programs in grid[1:]):
        raise ValueError(
            f"{kernel.fn.__name__} would take a grid of {' × '.join(map(str, grid))} programs, GPUs take 65535 on each "
            "axis but the first; split the batch or the sequence"
        )
    first = next(t for t in operands if isinstance(t, Tensor))
    traced = FakeTensor is not None and isinstance(first, (FakeTensor, FunctionalTensor))
    if INTERPRETED:
        if not traced:
            kernel[grid](*operands, **constants)
        return
    options = {"num_warps": waves(warps, _lanes()), "num_stages": 1}
    if traced:
        wrap_triton(kernel)[grid](*operands, **constants, **options)
        return
    with torch.get_device_module(first.device).device(first.device):  # Triton launches on the current device
        # The default of fusing changes between versions, about which Triton 3.9 warns.
        kernel[grid](*operands, **constants, **options, enable_fp_fusion=True)


def waves(warps: int, lanes: int) -> int:
    """Warps of `lanes` threads in the place of some of 32; of wide ones two at least: with one, kernels spill."""
    return warps if lanes == 32 else max(2, warps * 32 // lanes)


@functools.cache
def _lanes() -> int:
    """Threads of a warp."""
    return torch.cuda.get_device_properties().warp_size if torch.version.hip else 32


@functools.cache
def stores_lag() -> bool:
    """True if a barrier must be told to wait for stores to global memory: on AMD's gfx9, where Triton's does not."""
    return bool(torch.version.hip) and torch.cuda.get_device_properties().gcnArchName.startswith("gfx9")


def product_precision(dtype: torch.dtype) -> str:
    """Precision of products of float32 factors beside storage of `dtype`, where half precision does not do.

    On NVIDIA's tensor cores in TF32, or as three products of TF32 parts where the result is stored in float32.
    """
    if INTERPRETED or not torch.version.cuda:
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"
