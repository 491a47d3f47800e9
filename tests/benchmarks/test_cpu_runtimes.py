"""The record of CPU runtimes: what fits is measured, what is there is kept, nothing wrong is timed."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, its results and exported files in a folder of their own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module = importlib.import_module("cpu_runtimes")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(sys.modules["runtime_cases"], "CACHE", tmp_path)
    return module


def test_cases(runtimes: Any) -> None:
    (case,) = runtimes.cases(swin=["OpenVINO bfloat16"])
    assert str(case) == "swin_tiny_patch4_window7_224, OpenVINO bfloat16"
    assert case.precision == "bfloat16"
    assert [case.precision for case in runtimes.cases(ours=["eager", "frozen int8"])] == ["float32", "int8"]


def test_wrong_results_are_not_timed(runtimes: Any, tmp_path: Path) -> None:
    (case,) = runtimes.cases(ours=["frozen bfloat16"])
    expected = torch.tensor([[3.0, 4.0]])
    torch.save(expected, tmp_path / f"{case.model}_1.pt")
    assert runtimes.error(lambda: expected + 0.01, case, 1) == pytest.approx(0.01 * 2**0.5 / 5, rel=1e-4)
    for wrong in (expected + 1, expected * float("nan")):
        with pytest.raises(ValueError, match="against eager PyTorch"):
            runtimes.error(lambda wrong=wrong: wrong, case, 1)


def test_what_is_there_is_kept_and_what_does_not_fit_is_left_out(
    runtimes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = runtimes.Record("test")
    record.add(runtimes.row("batch 1", "vmamba, frozen int8", 1, runtimes.Timing(0.5, 0.4, 0.6), threads=2))
    again = runtimes.Record("test")
    assert again.has("batch 1")
    assert again.has("batch 1", "vmamba, frozen int8")
    assert not again.has("batch 8")
    assert not again.has("batch 1", "vmamba")
    assert again.rows[0]["ms"] == "500.0"

    started: list[str] = []
    monkeypatch.setattr(runtimes.subprocess, "run", lambda command, **_: started.append(command[3]))
    seconds = {name: section.seconds for name, section in runtimes.SECTIONS.items()}
    runtimes.orchestrate(argparse.Namespace(name="test", minutes=61 / 60, rounds=2))
    assert started == [name for name, each in seconds.items() if name != "batch 1" and each <= 60]
    out = capsys.readouterr().out
    assert out.startswith(
        f"{len(seconds) - 1} sections, {(sum(seconds.values()) - seconds['batch 1']) / 60:.0f} minutes"
    )
    assert f"batch 8: left out, 61 s are left and it takes about {seconds['batch 8']}" in out
