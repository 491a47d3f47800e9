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
from support.runs import write_images
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


def test_the_file_predicts_as_the_weights_do(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = weights.with_suffix(".onnx")
    assert main(["export", "--checkpoint", str(weights), "--output", str(output)]) == 0
    photos = tmp_path / "photos"
    write_images(photos, "train", 3)
    capsys.readouterr()

    def predict(*options: str) -> list[dict[str, Any]]:
        assert main(["predict", str(photos), "--json", "--batch-size", "4", *options]) == 0
        return json.loads(capsys.readouterr().out)

    expected = predict("--checkpoint", str(weights))
    result = predict("--checkpoint", str(output), "--engine", "onnxruntime")
    assert len(result) == len(expected) > 4
    for one, other in zip(result, expected, strict=True):
        assert [p["label"] for p in one["predictions"]] == [p["label"] for p in other["predictions"]]
        probabilities = [p["probability"] for p in other["predictions"]]
        assert [p["probability"] for p in one["predictions"]] == pytest.approx(probabilities, abs=1e-5)

    small = tmp_path / "int8.onnx"
    arguments = ["export", "--checkpoint", str(weights), "--output", str(small), "--precision", "int8"]
    assert main(arguments) == 2
    assert "int8 needs images" in capsys.readouterr().err
    assert main([*arguments, "--images", str(photos)]) == 0
    assert f"of PyTorch on {len(expected)} images" in capsys.readouterr().out
    for one, other in zip(predict("--checkpoint", str(small), "--engine", "onnxruntime"), expected, strict=True):
        assert one["predictions"][0]["probability"] == pytest.approx(other["predictions"][0]["probability"], abs=0.05)

    engine = ["--engine", "onnxruntime"]
    for arguments, message in [
        (["predict", str(photos), "--checkpoint", str(weights), *engine], "ONNX Runtime cannot load it"),
        (["predict", str(photos), "--checkpoint", str(tmp_path / "none.onnx"), *engine], "none.onnx"),
        (["segment", str(photos), "--checkpoint", str(output), *engine], "is for classification, not for segmentation"),
        (["detect", str(photos), "--checkpoint", str(output), *engine, "--model", "vmamba_pico"], "neither --model"),
    ]:
        assert main([*arguments, *(["--output", str(tmp_path / "out")] if arguments[0] != "predict" else [])]) == 2
        assert message in (error := capsys.readouterr().err)
        assert error.count("\n") == 1


def test_the_file_may_prepare_its_images_itself(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = weights.with_suffix(".onnx")
    assert main(["export", "--checkpoint", str(weights), "--with-preprocessing", "--output", str(output)]) == 0
    photos = tmp_path / "photos"
    write_images(photos, "train", 3)
    capsys.readouterr()

    def predict(*options: str) -> list[dict[str, Any]]:
        assert main(["predict", str(photos), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    engine = ["--checkpoint", str(output), "--engine", "onnxruntime"]
    for one, other in zip(predict(*engine), predict("--checkpoint", str(weights)), strict=True):
        expected = {p["label"]: p["probability"] for p in other["predictions"]}
        assert {p["label"]: p["probability"] for p in one["predictions"]} == pytest.approx(expected, abs=1e-3)
    assert main(["predict", str(photos), *engine, "--image-size", "96"]) == 2
    assert "takes images of any size, resized inside; leave out --image-size" in capsys.readouterr().err


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
