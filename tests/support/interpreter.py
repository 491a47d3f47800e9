"""Triton's interpreter with scans over whole slices.

Its own `associative_scan` calls the combining function once per element; these kernels hardly do anything but scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from triton.runtime.interpreter import ScanOps


def _generic_scan(self: Any, inputs: Any) -> list[Any]:
    """The combining function along the axis, on all other indices at once."""
    slices = [np.moveaxis(t.handle.data, self.axis, 0) for t in inputs]
    kinds = [t.dtype for t in inputs]
    so_far = [t[0] for t in slices]
    visited = [so_far]
    for i in range(1, len(slices[0])):
        before = [self.to_tensor(t, kind) for t, kind in zip(so_far, kinds, strict=True)]
        current = [self.to_tensor(t[i], kind) for t, kind in zip(slices, kinds, strict=True)]
        so_far = [t.handle.data for t in self.combine_fn.fn(*before, *current)]
        visited.append(so_far)
    stacked = [np.stack(steps, axis=self.axis) for steps in zip(*visited, strict=True)]
    return [self.to_tensor(t, kind) for t, kind in zip(stacked, kinds, strict=True)]


def scan_whole_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScanOps, "generic_scan", _generic_scan)
