"""``vmamba export``: one file, what it needs to be used with inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import vmamba
from support.golden import relative_error
from vmamba.checkpoints.info import ModelInfo, Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.ort import runner

pytestmark = pytest.mark.slow


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model: Any = vmamba.create_model("vmamba_pico", num_classes=2)
    model.info = ModelInfo(class_names=("cat", "dög"), preprocessing=Preprocessing(image_size=64))
    return save_weights(model, tmp_path / "model.safetensors")


def test_the_file_gives_what_the_weights_give(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = weights.with_suffix(".onnx")
    assert main(["export", "--checkpoint", str(weights), "--output", str(output)]) == 0
    assert "of PyTorch at 4 shapes" in capsys.readouterr().out
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load(output).metadata_props}
    assert facts["class_names"] == ["cat", "dög"]
    assert facts["preprocessing"]["image_size"] == 64
    model = vmamba.create_model("vmamba_pico", checkpoint=weights).eval()
    images = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        assert relative_error(runner(output)(images)[0], model(images)) < 1e-5


def test_the_checkpoint_is_never_replaced(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights.read_bytes()
    assert main(["export", "--checkpoint", str(weights), "--output", str(weights)]) == 2
    assert "over an input" in capsys.readouterr().err
    assert weights.read_bytes() == before


def test_an_impossible_size_is_one_line(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(
        ["export", "--checkpoint", str(weights), "--output", str(weights.with_suffix(".onnx")), "--image-size", "8"]
    )
    assert status == 2
    assert "at least 32 pixels" in capsys.readouterr().err
