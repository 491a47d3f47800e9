"""``--precision``: which models it freezes how, and where it is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vmamba
from support.commands import Fails, Run
from vmamba.data.images import read_image
from vmamba.tasks.classification.prediction import eval_transform

WORK = {
    "predict": ("weights", ()),
    "embed": ("weights", ()),
    "segment": ("segmenter", ()),
    "detect": ("detector", ("--score", 0)),
}


def test_predictions_are_those_of_the_frozen_model(
    run: Run, weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", images, "--checkpoint", weights, "--image-size", 32, "--precision", "int8", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    model: Any = vmamba.create_model("vmamba_pico", num_classes=3, checkpoint=weights).eval()
    x = torch.stack([eval_transform(model, 32)(read_image(row["image"])) for row in rows])
    with torch.no_grad():
        exact, expected = model(x).softmax(1), vmamba.freeze(model, "int8")(x).softmax(1)
    got = torch.zeros_like(expected)
    for i, row in enumerate(rows):
        for entry in row["predictions"]:
            got[i, entry["index"]] = entry["probability"]
    torch.testing.assert_close(got, expected)
    assert (got - exact).abs().max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("command", WORK)
def test_every_command_that_works_through_images(
    command: str,
    run: Run,
    fails: Fails,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixture, more = WORK[command]
    arguments = (command, images, "--checkpoint", request.getfixturevalue(fixture), "--image-size", 64, *more)
    asked: list[str] = []
    module = importlib.import_module(f"vmamba.cli.{command}")
    monkeypatch.setattr(module, "freeze", lambda model, precision: asked.append(precision) or vmamba.freeze(model))
    for precision in ("bfloat16", "int8"):
        assert run(*arguments, "--output", tmp_path / precision, "--precision", precision, "--device", "cpu") == 0
    assert run(*arguments, "--output", tmp_path / "out") == 0
    assert asked == ["bfloat16", "int8", "float32"]
    capsys.readouterr()

    meta = fails(*arguments, "--output", tmp_path / "meta", "--precision", "int8", "--device", "meta")
    assert "--precision int8 is for the CPU, not for meta; add --device cpu" in meta
    if command != "embed":
        line = fails(*arguments, "--engine", "onnxruntime", "--precision", "int8", "--output", tmp_path / "onnx")
        assert "computes in the precision of its file; give --precision int8 to 'vmamba export'" in line


def test_evaluate(
    run: Run,
    fails: Fails,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for i in range(3):
        (folder := tmp_path / "data" / "val" / f"class{i}").mkdir(parents=True)
        Image.new("RGB", (40, 40), (80 * i, 10, 200)).save(folder / "0.png")
    asked: list[str] = []
    module = importlib.import_module("vmamba.cli.evaluate")
    monkeypatch.setattr(module, "freeze", lambda model, precision: asked.append(precision) or vmamba.freeze(model))
    arguments = ("evaluate", "--data", tmp_path / "data", "--checkpoint", weights, "--image-size", 32, "--workers", 0)
    assert run(*arguments, "--output", tmp_path / "out", "--precision", "int8", "--device", "cpu") == 0
    assert asked == ["int8"]
    capsys.readouterr()
    line = fails(*arguments, "--output", tmp_path / "no", "--precision", "int8", "--set", "precision=bfloat16")
    assert "--precision int8 and --set precision=bfloat16 exclude each other" in line


def test_serve_and_throughput_refuse_what_cannot_be(run: Run, fails: Fails, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("litserve")
    line = fails("serve", "--checkpoint", weights, "--precision", "int8", "--device", "meta")
    assert "--precision int8 is for the CPU, not for meta" in line
    line = fails("analyze", "throughput", "--mode", "training", "--precision", "int8", "--output", tmp_path)
    assert "add --mode inference" in line
