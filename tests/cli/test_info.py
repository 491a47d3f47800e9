"""``vmamba models`` and ``vmamba env``."""

from __future__ import annotations

import json

import pytest
import torch

import vmamba
from support.commands import Run
from vmamba.model.variants import VARIANTS
from vmamba.ops.backends import BACKENDS


def test_models_lists_all_with_published_results(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    out = capsys.readouterr().out
    for name in vmamba.list_models():
        assert name in out
    assert "30.2 M" in out
    assert "83.9" in out


def test_models_as_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--json") == 0
    records = {record.pop("model"): record for record in json.loads(capsys.readouterr().out)}
    assert list(records) == vmamba.list_models()
    parameters = sum(p.numel() for p in vmamba.create_model("vmamba_pico").parameters())
    assert records["vmamba_pico"] == {"parameters": parameters, "top1": None, "image_size": 224, "weights": None}
    assert records["vmamba_base_s1l20"]["top1"] == VARIANTS["vmamba_base_s1l20"].top1
    assert records["vmamba_base_s1l20"]["weights"].startswith("https://")


def test_env_as_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("env", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    assert list(facts["backends"]) == list(BACKENDS)
    assert facts["scans"]["cpu"]["backend"] == vmamba.ops.select(torch.device("cpu")).name


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
