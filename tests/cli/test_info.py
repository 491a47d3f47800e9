"""``vmamba models`` and ``vmamba env``."""

from __future__ import annotations

import pytest
import torch

import vmamba
from support.commands import Run


def test_models_lists_all_with_published_results(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    out = capsys.readouterr().out
    for name in vmamba.list_models():
        assert name in out
    assert "30.2 M" in out
    assert "83.9" in out


def test_env_says_which_kernels_run_and_why(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("env") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert torch.__version__.split("+")[0] in out
    assert "scan backend native" in out
    choice = vmamba.ops.select(torch.device("cpu"))
    assert f"{choice.name}: {choice.reason}"[:30] in out
