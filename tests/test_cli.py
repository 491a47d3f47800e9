"""The command line as a person meets it: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

import vmamba
from support.golden import GOLDEN
from vmamba import VMambaConfig
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main

AUTHOR_FILE = GOLDEN / "author_format_checkpoint.pth"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=3)
    return save_weights(model, tmp_path / "weights.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40 + i, 50), (80 * i, 10, 200)).save(folder / f"{i}.png")
    return folder


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a failing command leaves on the error stream."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("vmamba: error: ")
    return line


def test_models_lists_all_with_published_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    out = capsys.readouterr().out
    for name in vmamba.list_models():
        assert name in out
    assert "30.2 M" in out
    assert "83.9" in out


def test_env_says_which_kernels_run_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("env") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert torch.__version__.split("+")[0] in out
    assert "scan backend native" in out
    choice = vmamba.ops.select(torch.device("cpu"))
    assert f"{choice.name}: {choice.reason}"[:30] in out


def test_predict_table(
    weights: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("predict", images, "--checkpoint", weights, "--image-size", 32, "--topk", 2) == 0
    out = capsys.readouterr().out
    assert out.count("class ") >= 6
    assert str(images / "2.png") in out


def test_predict_json_agrees_with_the_model(weights: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = weights.with_name("labels.txt")
    labels.write_text("a\nb\nc\n")
    options = ("--checkpoint", weights, "--image-size", 32, "--labels", labels, "--batch-size", 2, "--json")
    assert run("predict", images / "0.png", f"{images}/[12].png", *options) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    model = vmamba.create_model("vmamba_pico", num_classes=3, checkpoint=weights).eval()
    from vmamba.data.images import read_image
    from vmamba.tasks.classification.prediction import eval_transform

    for row in rows:
        x = eval_transform(model, 32)(read_image(row["image"]))
        with torch.no_grad():
            expected = model(x[None]).softmax(1)[0]
        for entry in row["predictions"]:
            assert entry["label"] == "abc"[entry["index"]]
            assert entry["probability"] == pytest.approx(expected[entry["index"]].item(), rel=1e-4)


def test_broken_images_are_skipped_and_the_rest_is_done(
    weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.png").write_bytes(b"")
    assert run("predict", images, "--checkpoint", weights, "--image-size", 32, "--json") == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 3
    (line,) = (line for line in captured.err.splitlines() if "skipped" in line)
    assert "broken.png" in line


def test_predict_errors(weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file or folder: nothing.png" in fails(capsys, "predict", "nothing.png", "--checkpoint", weights)
    (tmp_path / "empty").mkdir()
    assert "no images in the folder" in fails(capsys, "predict", tmp_path / "empty", "--checkpoint", weights)
    assert "none.pth: no such file" in fails(capsys, "predict", images, "--checkpoint", "none.pth")
    assert "--pretrained needs --model" in fails(capsys, "predict", images, "--pretrained")
    line = fails(capsys, "predict", images, "--pretrained", "--model", "vmamba_tiny")
    assert "unknown model 'vmamba_tiny'; do you mean" in line
    line = fails(capsys, "predict", images, "--checkpoint", weights, "--model", "vmamba_nano")
    assert "does not fit vmamba_nano, it looks like vmamba_pico" in line
    assert "--device warp: " in fails(capsys, "predict", images, "--checkpoint", weights, "--device", "warp")
    assert "topk" in fails(capsys, "predict", images, "--checkpoint", weights, "--topk", 0)
    with pytest.raises(SystemExit, match="2"):
        run("predict", images)
    assert "one of the arguments --checkpoint --pretrained is required" in capsys.readouterr().err


def test_convert_recognises_the_variant(
    tmp_path: Path, released: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from support.golden import synthetic_state_dict

    source = tmp_path / "vssm1_tiny.pth"
    torch.save({"model": synthetic_state_dict(released["vmamba_tiny_s1l8"]["state_dict"])}, source)
    assert run("convert", source) == 0
    target = source.with_suffix(".safetensors")
    assert capsys.readouterr().out == f"wrote {target} and {target.with_suffix('.json')}\n"
    config = VMambaConfig.from_json(target.with_suffix(".json").read_text())
    assert config == vmamba.zoo.VARIANTS["vmamba_tiny_s1l8"].config
    expected = vmamba.create_model("vmamba_tiny_s1l8", checkpoint=source).state_dict()
    converted = safetensors.torch.load_file(target)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    assert "exists; name another target, or replace it with --force" in fails(capsys, "convert", source)
    assert run("convert", source, "--force") == 0


def test_convert_with_the_authors_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = tmp_path / "model.yaml"
    yaml.write_text(
        "MODEL:\n  VSSM:\n    EMBED_DIM: 8\n    DEPTHS: [1, 1, 1, 1]\n    SSM_D_STATE: 1\n    SSM_RATIO: 1.0\n"
        '    SSM_CONV_BIAS: false\n    SSM_FORWARDTYPE: "v05_noz"\n    DOWNSAMPLE: "v3"\n    NORM_LAYER: "ln2d"\n'
    )
    target = tmp_path / "out.safetensors"
    for weights in ("model", "model_ema"):
        assert run("convert", AUTHOR_FILE, target, "--config", yaml, "--weights", weights, "--force") == 0
        expected = torch.load(AUTHOR_FILE, weights_only=False, pickle_module=_WithoutYacs)[weights]
        assert torch.equal(safetensors.torch.load_file(target)["norm.weight"], expected["classifier.norm.weight"])
    capsys.readouterr()
    assert "fits none of the known variants" in fails(capsys, "convert", AUTHOR_FILE, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


class _WithoutYacs:
    """A pickle module for our own golden file, an independent way to read it: unknown classes become dictionaries."""

    import pickle as _pickle

    load = _pickle.load
    UnpicklingError = _pickle.UnpicklingError

    class Unpickler(_pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module.startswith("yacs"):
                return type(name, (dict,), {})
            return super().find_class(module, name)


def test_demo_trains_saves_reloads_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One epoch only; `make demo` runs all of them and must reach 97 %."""
    assert run("demo", "--output", tmp_path / "demo", "--epochs", 1) == 0
    out = capsys.readouterr().out
    assert "accuracy on 360 held-out digits: " in out
    assert f"vmamba predict {tmp_path / 'demo' / 'images'}" in out.replace("\n", "")
    with Image.open(tmp_path / "demo" / "predictions.png") as picture:
        assert min(picture.size) > 500
    assert len(list((tmp_path / "demo" / "images").glob("*.png"))) == 24
