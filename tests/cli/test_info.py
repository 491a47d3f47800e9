"""``vmamba models``, ``vmamba env`` and ``vmamba completion``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import vmamba
from support.commands import Run
from vmamba.model.variants import VARIANTS
from vmamba.ops.backends import BACKENDS


@pytest.mark.slow
def test_models_lists_all_with_published_results(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    out = capsys.readouterr().out
    for name in vmamba.list_models():
        assert name in out
    assert "30.2 M" in out
    assert "83.9" in out


@pytest.mark.slow
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


def test_env_as_a_report(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run("env", "--report") == 0
    out = capsys.readouterr().out
    facts = json.loads(re.search(r"```json\n(.*)```", out, flags=re.DOTALL)[1])  # type: ignore[index]
    assert {"torch", "numpy", "mmengine"} <= facts["packages"].keys()
    assert facts["variables"]["OMP_NUM_THREADS"] == "3"
    assert out.startswith("<details>")


@pytest.mark.slow
def test_completion_in_bash(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ask bash itself what it would offer."""
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    assert run("completion", "bash") == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)

    def offered(*words: str) -> set[str]:
        line = " ".join(words)
        program = f"""
            source {script}
            function_name=$(complete -p vmamba | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            COMP_WORDS=({line} {"''" if not words[-1] else ""}); COMP_CWORD={len(words) - 1}
            COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
            $function_name vmamba "{words[-1]}" "{words[-2]}"; printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        result = subprocess.run([bash, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
        return {line.strip() for line in result.stdout.splitlines() if line.strip()}

    assert {"predict", "train", "analyze"} <= offered("vmamba", "")
    assert offered("vmamba", "tr") == {"train"}
    assert "--checkpoint" in offered("vmamba", "predict", "--ch")
    assert {"cost", "attention"} <= offered("vmamba", "analyze", "")
    (tmp_path / "weights.safetensors").touch()
    assert "weights.safetensors" in offered("vmamba", "predict", "--checkpoint", "wei")
