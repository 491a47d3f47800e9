"""Where kernels run, without a GPU: stubs for the kernel, the operand's device, and PyTorch's module for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from vmamba.ops.backends.triton import launch as launching
from vmamba.ops.backends.triton import ss2d_walk_forward as walk_kernels


class OnSecondGPU(Tensor):
    device = torch.device("cuda", 1)  # type: ignore[assignment]


class Devices:
    """PyTorch's module for a kind of device."""

    current = torch.device("cuda", 0)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device
        yield
        self.current = before


class Kernel:
    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        self.launches: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *operands, **options: self.launches.append((self.devices.current.index, grid, options))


def test_kernels_run_on_the_device_of_their_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices()
    kernel = Kernel(devices)
    monkeypatch.setattr(torch, "get_device_module", lambda device: devices)
    monkeypatch.setattr(launching, "INTERPRETED", False)
    operand = torch.empty(3).as_subclass(OnSecondGPU)
    launching.launch(kernel, (70000,), (operand, 3), 2, BLOCK=4)
    assert devices.current.index == 0
    [(index, grid, options)] = kernel.launches
    assert (index, grid) == (1, (70000,))
    assert options == {"BLOCK": 4, "num_warps": 2, "num_stages": 1, "enable_fp_fusion": True}


def test_wide_warps_hold_as_many_threads() -> None:
    assert [launching.waves(warps, 32) for warps in (1, 2, 8)] == [1, 2, 8]
    assert [launching.waves(warps, 64) for warps in (1, 2, 4, 8)] == [2, 2, 2, 4]


def test_more_programs_than_a_gpu_takes_are_refused_in_one_line() -> None:
    operands = (torch.empty(3), 3)
    with pytest.raises(ValueError, match="_walk would take a grid of 1 × 65536 programs, GPUs take 65535") as caught:
        launching.launch(walk_kernels._walk, (1, 65536), operands, 2)
    assert "\n" not in str(caught.value)
