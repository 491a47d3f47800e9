"""The benchmark of `scan_routes`: runs, and times nothing that is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import routes as benchmark
import torch


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["routes.py", "--smoke", "--output", str(tmp_path / "routes.csv")])
    benchmark.main()
    assert (tmp_path / "routes.csv").read_text().count('"6x6, D = 8, N = 16",forward') == 2 * len(benchmark.SCANS)


def test_what_is_wrong_is_not_timed() -> None:
    drawn = iter(range(9))
    with pytest.raises(SystemExit, match="the two forms differ"):
        benchmark.measure(lambda: [torch.tensor([1.0 + next(drawn)])], 3)
