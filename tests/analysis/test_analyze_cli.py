"""``vmamba analyze``: every analysis leaves a table and a picture, and says where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.cli.analyze.arguments import remark_on_spread
from vmamba.tables import read_csv

pytestmark = pytest.mark.slow


def analyze(capsys: pytest.CaptureFixture[str], output: Path, *arguments: object) -> list[Path]:
    """The files that an analysis says it wrote, all of them there."""
    assert main(["analyze", *map(str, arguments), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    listed = out[out.rindex("wrote ") + len("wrote ") :]
    paths = [Path(name.strip()) for name in listed.split(", ")]
    assert {path.suffix for path in paths} >= {".png", ".svg"}
    for path in paths:
        assert path.stat().st_size > 100, path
    return paths


def test_cost(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    analyze(capsys, tmp_path, "cost", "vmamba_pico", "resnet18", "--image-size", "64x96", "--depth", 1)
    rows = read_csv(tmp_path / "cost.csv")
    assert [row["model"] for row in rows if not row["layer"]] == ["vmamba_pico", "resnet18"]
    assert sum(int(row["macs"]) for row in rows if row["layer"] in ("stem", "stages", "norm", "head")) == int(
        rows[0]["macs"]
    )


@pytest.mark.parametrize("name", ["cost", "attention", "activation"])
def test_json_is_all_of_the_output(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, image: Path, weights: Path
) -> None:
    arguments = ["vmamba_pico"] if name == "cost" else [str(image), "--checkpoint", str(weights), "--device", "cpu"]
    assert main(["analyze", name, *arguments, "--image-size", "64", "--json", "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert "wrote " in err
    if name == "cost":
        assert len(printed) == len(read_csv(tmp_path / "cost.csv"))
    else:
        assert printed == json.loads((tmp_path / f"{name}.json").read_text())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.effect_noise((50, 40), 60).convert("RGB").save(path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save_weights(vmamba.create_model("vmamba_pico", num_classes=3), tmp_path / "weights.safetensors")


def test_attention(capsys: pytest.CaptureFixture[str], tmp_path: Path, image: Path, weights: Path) -> None:
    arguments = ("--checkpoint", weights, "--image-size", "64x96", "--block", "1.0", "--query", "0.99,0")
    analyze(capsys, tmp_path, "attention", image, *arguments, "--normalised", "--device", "cpu")
    found = json.loads((tmp_path / "attention.json").read_text())
    assert (found["block"], found["grid"], found["queries"][0]["query"]) == ("stages.1.blocks.0", [8, 12], [7, 0])
    for route in found["queries"][0]["routes"]:
        assert np.array(route["row"]).sum() == pytest.approx(1, rel=1e-5)


def test_activation(capsys: pytest.CaptureFixture[str], tmp_path: Path, image: Path, weights: Path) -> None:
    arguments = ("--checkpoint", weights, "--image-size", 64, "--layer", "stages.1", "--position", "0,0.99")
    analyze(capsys, tmp_path, "activation", image, *arguments)
    found = json.loads((tmp_path / "activation.json").read_text())
    assert (found["grid"], found["positions"][0]["position"]) == ([8, 8], [0, 7])
    assert found["name"] == f"class {found['class']}"
    assert np.array(found["class_activation"]).shape == (64, 64)


def test_erf(capsys: pytest.CaptureFixture[str], tmp_path: Path, image: Path, weights: Path) -> None:
    arguments = ("resnet18", "--checkpoint", weights, "--image-size", 64, "--count", 2, "--device", "cpu")
    analyze(capsys, tmp_path, "erf", *arguments)
    rows = read_csv(tmp_path / "erf.csv")
    assert [(row["model"], row["weights"]) for row in rows] == [
        ("resnet18", "random weights"),
        ("weights", "before training"),
        ("weights", "after training"),
    ]
    assert rows[1] != rows[2] | {"weights": "before training"}
    analyze(capsys, tmp_path, "erf", "resnet18", "--images", image, "--image-size", 64, "--device", "cpu")
    assert read_csv(tmp_path / "erf.csv")[0]["images"] == "1"


def test_throughput(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("vmamba_pico", "test_convnext", "--image-size", 64, "--batch-size", 2, "--rounds", 2)
    analyze(capsys, tmp_path, "throughput", *arguments, "--mode", "inference", "--device", "cpu")
    rows = read_csv(tmp_path / "throughput.csv")
    assert [row["model"] for row in rows] == ["vmamba_pico", "test_convnext"]
    assert float(rows[0]["images_per_s"]) == pytest.approx(2e3 / float(rows[0]["ms"]), rel=1e-2)
    frozen = ("--mode", "inference", "--precision", "int8", "--device", "cpu")
    analyze(capsys, tmp_path, "throughput", arguments[0], *arguments[2:], *frozen)
    assert [row["model"] for row in read_csv(tmp_path / "throughput.csv")] == ["vmamba_pico", "vmamba_pico frozen int8"]


def test_precision(capsys: pytest.CaptureFixture[str], tmp_path: Path, image: Path, weights: Path) -> None:
    analyze(capsys, tmp_path, "precision", image, "--checkpoint", weights, "--rounds", 2)
    rows = {row["precision"]: row for row in read_csv(tmp_path / "precision.csv")}
    assert list(rows) == ["float32", "bfloat16", "int8"]
    for precision, error in (("float32", 1e-5), ("bfloat16", 2e-2), ("int8", 5e-2)):
        assert float(rows[precision]["relative_error"]) < error, precision
    assert rows["float32"]["agreement"] == "1.0000"


def test_scaling(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    analyze(capsys, tmp_path, "scaling", "vmamba_pico", "--sizes", 96, 64, "--rounds", 2, "--device", "cpu")
    assert [row["height"] for row in read_csv(tmp_path / "scaling.csv")] == ["64", "96"]


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "cost", "resnet5"]) == 2
    assert capsys.readouterr().err == "vmamba: error: unknown model 'resnet5'; do you mean 'resnet50'?\n"


def test_a_disturbed_measurement_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    remark_on_spread([("steady", 1.2), ("disturbed", 31)])
    assert "the slowest call of disturbed took 31 times the median" in capsys.readouterr().out
    remark_on_spread([("steady", 1.2)])
    assert capsys.readouterr().out == ""
