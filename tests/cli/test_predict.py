"""``vmamba predict``: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba
from support.commands import Fails, Run
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.data import sources
from vmamba.data.images import read_image
from vmamba.tasks.classification.prediction import eval_transform


def test_listing(run: Run, weights: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", images, "--checkpoint", weights, "--image-size", 32, "--topk", 2) == 0
    out = capsys.readouterr().out
    assert out.count("class ") >= 6
    assert str(images / "2.png") in out


def test_picture(
    run: Run, fails: Fails, weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--checkpoint", weights, "--image-size", 32)
    assert run("predict", images, *options, "--picture", tmp_path / "sheet.png") == 0
    capsys.readouterr()
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > picture.height > 100  # three images in a row
    assert "sheet.png exists" in fails("predict", images, *options, "--picture", tmp_path / "sheet.png")
    assert run("predict", images, *options, "--picture", tmp_path / "sheet.png", "--overwrite") == 0
    capsys.readouterr()
    before = (images / "0.png").read_bytes()
    assert "0.png" in fails("predict", images / "0.png", *options, "--picture", images / "0.png")
    assert (images / "0.png").read_bytes() == before
    assert "must end in .png or .svg" in fails("predict", images, *options, "--picture", tmp_path / "sheet.jpg")


def test_json_agrees_with_the_model(run: Run, weights: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = weights.with_name("labels.txt")
    labels.write_text("a\nb\nc\n")
    options = ("--checkpoint", weights, "--image-size", 32, "--labels", labels, "--batch-size", 2, "--json")
    assert run("predict", images / "0.png", f"{images}/[12].png", *options) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    model = vmamba.create_model("vmamba_pico", num_classes=3, checkpoint=weights).eval()
    for row in rows:
        x = eval_transform(model, 32)(read_image(row["image"]))
        with torch.no_grad():
            expected = model(x[None]).softmax(1)[0]
        for entry in row["predictions"]:
            assert entry["label"] == "abc"[entry["index"]]
            assert entry["probability"] == pytest.approx(expected[entry["index"]].item(), rel=1e-4)


def test_broken_images_are_listed_and_the_rest_is_done(
    run: Run, weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.png").write_bytes(b"")
    assert run("predict", images, "--checkpoint", weights, "--image-size", 32, "--json") == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 3
    (line,) = (line for line in captured.err.splitlines() if "failed" in line)
    assert "broken.png" in line


def test_errors(
    run: Run, fails: Fails, weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file or folder: nothing.png" in fails("predict", "nothing.png", "--checkpoint", weights)
    (tmp_path / "empty").mkdir()
    assert "no images in the folder" in fails("predict", tmp_path / "empty", "--checkpoint", weights)
    assert "none.pth: no such file" in fails("predict", images, "--checkpoint", "none.pth")
    assert "--pretrained needs --model" in fails("predict", images, "--pretrained")
    line = fails("predict", images, "--pretrained", "--model", "vmamba_tiny")
    assert "unknown model 'vmamba_tiny'; do you mean" in line
    line = fails("predict", images, "--checkpoint", weights, "--model", "vmamba_nano")
    assert "does not fit" in line
    assert "it looks like vmamba_pico" in line
    assert "--device warp: " in fails("predict", images, "--checkpoint", weights, "--device", "warp")
    assert "topk" in fails("predict", images, "--checkpoint", weights, "--topk", 0)
    with pytest.raises(SystemExit, match="2"):
        run("predict", images)
    assert "one of the arguments --checkpoint --pretrained is required" in capsys.readouterr().err


def test_the_checkpoint_says_how_images_are_prepared_and_what_classes_are_called(
    run: Run, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=3)
    own = Preprocessing(image_size=48, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), interpolation="nearest", crop_pct=1.0)
    path = save_weights(model, tmp_path / "own.safetensors", class_names=["a[b]", "[/c]", "ü"], preprocessing=own)
    assert run("predict", images, "--checkpoint", path, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    for row in rows:
        with Image.open(row["image"]) as image:
            small = image.resize((48, 48 * 50 // image.width), Image.Resampling.NEAREST)
        top = (small.height - 48) // 2
        pixels = torch.tensor(np.asarray(small.crop((0, top, 48, top + 48)))) / 255
        x = ((pixels - torch.tensor(own.mean)) / torch.tensor(own.std)).permute(2, 0, 1)
        with torch.no_grad():
            expected = model.eval()(x[None]).softmax(1)[0]
        for entry in row["predictions"]:
            assert entry["label"] == ["a[b]", "[/c]", "ü"][entry["index"]]
            assert entry["probability"] == pytest.approx(expected[entry["index"]].item(), rel=1e-4)
    assert run("predict", images, "--checkpoint", path) == 0
    out = capsys.readouterr().out
    assert out.count("%  a[b]\n") == out.count("%  [/c]\n") == out.count("%  ü\n") == 3


NAMES = ["photo[red].png", "x[/y].png", ":smile:.png", "line\nbreak.png", "\x1b[31mred.png", "猫 मी.png", "*.png"]


def test_names_are_data(run: Run, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither markup nor control codes nor bytes that are no text reach the terminal, and each image is done once."""
    folder = tmp_path / "odd"
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(path)
    undecodable = os.fsencode(folder) + b"/caf\xe9.png"
    os.link(folder / "*.png", undecodable)
    assert run("predict", folder, "--checkpoint", weights, "--image-size", 32, "--topk", 1) == 0
    out = capsys.readouterr().out
    shown = [line for line in out.splitlines() if not line.startswith(" ")]
    escaped = [name.replace("\n", r"\n").replace("\x1b", r"\x1b") for name in NAMES]
    assert sorted(shown) == sorted(str(folder / name) for name in [*escaped, r"caf\udce9.png"])
    assert "\x1b" not in out
    assert run("predict", folder, "--checkpoint", weights, "--image-size", 32, "--json") == 0
    out = capsys.readouterr().out
    out.encode()
    assert "\x1b" not in out
    assert sorted(row["image"] for row in json.loads(out)) == sorted(
        [*(str(folder / name) for name in NAMES), os.fsdecode(undecodable)]
    )
    literal = folder / "photo[red].png"
    assert run("predict", literal, "--checkpoint", weights, "--image-size", 32, "--topk", 1) == 0
    assert capsys.readouterr().out.startswith(f"{literal}\n")


def test_results_come_as_they_are_done_and_an_interruption_keeps_them(
    run: Run, weights: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def read(path: str, *_: object, **__: object) -> Image.Image:
        if path.endswith("2.png"):
            seen.append(capsys.readouterr().out)
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(sources, "read_image", read)
    assert run("predict", images, "--checkpoint", weights, "--batch-size", 1, "--json") == 130
    captured = capsys.readouterr()
    rows = json.loads(seen[0] + captured.out)
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png"]
    assert captured.err == "vmamba: interrupted\n"


def test_images_of_any_shape(run: Run, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a whole, resized to a short side of 36 pixels, one of them would have 390 million."""
    for name, size in {"wide": (300_000, 1), "tall": (1, 300_000), "dot": (1, 1)}.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    assert run("predict", f"{tmp_path}/*.png", "--checkpoint", weights, "--image-size", 32, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 3
    assert rows[0]["predictions"] == rows[1]["predictions"] == rows[2]["predictions"]  # all of one colour


def test_a_pipe_is_refused(run: Run, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert run("predict", tmp_path / "pipe.png", "--checkpoint", weights) == 1
    assert "pipe.png: it is a pipe" in capsys.readouterr().err
    os.mkfifo(tmp_path / "labels.txt")
    assert run("predict", tmp_path, "--checkpoint", weights, "--labels", tmp_path / "labels.txt") == 2


def test_large_images_on_request(
    run: Run, weights: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("small", 100), ("large", 200)):
        Image.new("RGB", (size, size)).save(images / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # twice this is refused
    options = ("--checkpoint", weights, "--image-size", 32)
    assert run("predict", images / "small.png", *options) == 1
    assert run("predict", images / "small.png", *options, "--max-pixels", 10_000) == 0
    capsys.readouterr()
    assert run("predict", images / "large.png", *options, "--max-pixels", 10_000) == 1
    assert "more than 10,000 pixels" in capsys.readouterr().err
