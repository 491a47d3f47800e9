"""The benchmark of the compatible layers: runs, and times nothing that is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import compat as benchmark


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compat.py", "--smoke", "--output", str(tmp_path / "compat.csv")])
    benchmark.main()
    text = (tmp_path / "compat.csv").read_text()
    assert text.count("v0,8,4x4,1,") == text.count("v2,8,4x4,1,") == 2


def test_wrong_layers_are_not_timed() -> None:
    layer = benchmark.GENERATIONS["v0"](8)
    other = benchmark.with_copies(layer, benchmark.selective_scan_ref)
    torch.nn.init.zeros_(other.Ds)
    loop = benchmark.with_copies(layer, benchmark.selective_scan_ref)
    with pytest.raises(SystemExit, match="stand-in differs from the loop"):
        benchmark.check({"stand-in": other, "loop": loop}, torch.randn(1, 3, 4, 8))
