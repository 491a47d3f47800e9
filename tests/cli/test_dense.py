"""``vmamba detect`` and ``vmamba segment``: files that are whole, beside inputs that nobody touches."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from support.commands import Fails, Run
from vmamba import VMamba, VMambaConfig
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import segment
from vmamba.data import sources
from vmamba.data.images import read_image
from vmamba.files import lock
from vmamba.tasks.dense.pictures import class_fractions
from vmamba.tasks.detection import prediction
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.tasks.segmentation.inference import Inference, as_tensor
from vmamba.tasks.segmentation.inference import segment as segment_image
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

KINDS = ("detect", "segment")


@pytest.fixture(params=KINDS)
def command(request: pytest.FixtureRequest) -> list[Any]:
    """A command with a checkpoint that finds something in every image."""
    checkpoint = request.getfixturevalue("detector" if request.param == "detect" else "segmenter")
    return [
        request.param,
        "--checkpoint",
        checkpoint,
        "--image-size",
        64,
        *(["--score", 0] * (request.param == "detect")),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(output: Path) -> Any:
    (path,) = output.glob("*s.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if "error" not in row]


def test_inputs_are_never_written_over(
    command: list[Any], run: Run, fails: Fails, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path)
    alias = tmp_path / "alias"
    alias.symlink_to(images)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "0.png").symlink_to(images / "0.png")
    other_case = tmp_path / "other"
    other_case.mkdir()
    os.link(images / "1.png", other_case / "1.PNG")
    before |= {str(other_case / "1.PNG"): (images / "1.png").read_bytes()}
    for source, output in ((images, images), (images, alias), (alias, images), (images, tmp_path)):
        assert "would be written over an input" in fails(*command, source, "--output", output)
        assert not list(output.glob("*.jsonl"))
    assert "would be written over an input" in fails(*command, other_case / "1.PNG", "--output", other_case)
    assert run(*command, images, "--output", linked) == 0  # a link is replaced, and what it points to is not
    assert {name: content for name, content in contents(tmp_path).items() if name in before} == before


def test_every_result_has_a_name_of_its_own(
    run: Run, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a.jpg", "a.png", "a_2.jpg", "A.webp", "x.jpg", "x_labels.jpg", "sub/a.jpg")
    folder = tmp_path / "many"
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 33)).save(folder / name)
    paths = [folder / name for name in names]
    assert run("segment", *paths, "--checkpoint", segmenter, "--output", tmp_path / "out", "--json") == 0
    records = json.loads(capsys.readouterr().out)
    assert records == results(tmp_path / "out")
    assert [record["image"] for record in records] == list(map(str, paths))
    widths = []
    for record in records:
        with Image.open(record["labels"]) as labels:
            widths.append(labels.width)
    assert widths == [40 + i for i in range(len(names))]
    assert len({path.name.casefold() for path in (tmp_path / "out").glob("*.png")}) == 2 * len(names)


def test_one_failure_ends_nothing_else(
    command: list[Any], run: Run, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in {"wide": (9000, 1), "tall": (1, 9000), "dot": (1, 1), "strip": (3, 3000)}.items():
        Image.effect_noise(size, 60).convert("RGB").save(images / f"{name}.png")
    (images / "broken.png").write_bytes(b"\x89PNG")
    assert run(*command, images, "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"vmamba: failed: cannot read the image {images / 'broken.png'}")
    assert {Path(record["image"]).stem for record in results(tmp_path / "out")} == {
        *"012",
        "wide",
        "tall",
        "dot",
        "strip",
    }
    for name in ("wide", "strip"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            picture.load()


def test_a_bug_in_one_image_is_shown_after_the_others(
    command: list[Any], run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def read(path: str, *_: object, **__: object) -> Image.Image:
        return 1 / 0 if path.endswith("0.png") else read_image(path)  # type: ignore[return-value]

    monkeypatch.setattr(sources, "read_image", read)
    assert run(*command, images, "--output", tmp_path / "out") == 70
    err = capsys.readouterr().err
    assert f"vmamba: failed: {images / '0.png'}: ZeroDivisionError: division by zero\nTraceback" in err
    assert {Path(record["image"]).stem for record in results(tmp_path / "out")} == {"1", "2"}


def test_an_interruption_keeps_what_is_done(
    command: list[Any], run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: str, *_: object, **__: object) -> Image.Image:
        if path.endswith("2.png"):
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(sources, "read_image", read)
    assert run(*command, images, "--output", tmp_path / "out") == 130
    assert {Path(record["image"]).stem for record in results(tmp_path / "out")} == {"0", "1"}
    assert not list((tmp_path / "out").glob(".writing-*"))


def test_a_full_disk_ends_the_command_and_keeps_what_is_done(
    run: Run, fails: Fails, segmenter: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def draw(path: Path, *_: object) -> None:
        if path.name == "1.png":
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(segment, "draw_segmentation", draw)
    assert run("segment", images, "--checkpoint", segmenter, "--output", tmp_path / "out", "--quiet") == 2
    assert "1.png: No space left on device; make room on the disk" in capsys.readouterr().err
    assert [Path(record["image"]).stem for record in results(tmp_path / "out")] == ["0"]


def test_two_commands_do_not_mix_their_results(command: list[Any], fails: Fails, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / ".writing-left.png.x").write_bytes(b"")
    with lock(
        output / f".{command[0]}{'ions' * (command[0] == 'detect')}{'s' * (command[0] == 'segment')}.jsonl.lock", "held"
    ):
        assert "another command is writing its results into" in fails(*command, images, "--output", output)
    assert (output / ".writing-left.png.x").exists()


def test_what_a_killed_command_left_is_removed(command: list[Any], run: Run, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (output / "sub").mkdir(parents=True)
    for name in (".writing-left.png.x", "sub/.writing-other.x", "kept.png"):
        (output / name).write_bytes(b"")
    assert run(*command, images, "--output", output) == 0
    assert not (output / ".writing-left.png.x").exists()
    assert (output / "sub" / ".writing-other.x").exists()
    assert (output / "kept.png").exists()


def test_names_of_files_and_classes_are_data(
    command: list[Any], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = ["photo[red].png", "line\nbreak.png", "$x$.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "image.png")
        os.link(tmp_path / "image.png", folder / name)
        (tmp_path / "image.png").unlink()
    load = load_detector if command[0] == "detect" else load_segmenter
    model = load(command[2])
    model.config = type(model.config)(
        **{**vars(model.config), "classes": ("[unk] thing", "$5_note$", "猫\n[/b]")[: len(model.config.classes)]}
    )
    command[2] = save_weights(model, tmp_path / "odd.safetensors")
    assert run(*command, folder, "--output", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "[unk] thing" in captured.out or "$5_note$" in captured.out
    assert {record["image"] for record in results(tmp_path / "out")} == {str(folder / name) for name in names}
    if command[0] == "segment":
        assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == ["[unk] thing", "$5_note$", r"猫\n[/b]"]
        for name in names:
            assert (tmp_path / "out" / name.replace(".png", "_labels.png")).is_file()


def test_segment_prepares_images_as_the_checkpoint_says(
    run: Run, segmenter: Path, images: Path, tmp_path: Path
) -> None:
    model = load_segmenter(segmenter).eval()
    own = Preprocessing(image_size=80, max_size=90, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    path = save_weights(model, tmp_path / "own.safetensors", preprocessing=own)
    Image.effect_noise((70, 50), 90).convert("RGB").save(images / "0.png")
    assert run("segment", images / "0.png", "--checkpoint", path, "--output", tmp_path / "out") == 0
    image = as_tensor(read_image(images / "0.png"))
    expected = segment_image(model, image, Inference(80, 2048, mean=own.mean, std=own.std))
    limited = segment_image(model, image, Inference(80, 90, mean=own.mean, std=own.std))
    with Image.open(tmp_path / "out" / "0_labels.png") as labels:
        assert torch.equal(as_tensor(labels)[0], limited)
    assert not torch.equal(expected, limited)
    (record,) = results(tmp_path / "out")
    fractions = [entry["fraction"] for entry in record["fractions"]]
    assert sum(fractions) == pytest.approx(1)
    assert fractions == [fraction for _, fraction in class_fractions(limited)]


def test_detect_does_as_the_checkpoint_says(run: Run, detector: Path, images: Path, tmp_path: Path) -> None:
    model = load_detector(detector).eval()
    own = Preprocessing(image_size=64, max_size=72, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    path = save_weights(model, tmp_path / "own.safetensors", preprocessing=own)
    image = Image.effect_noise((70, 50), 90).convert("RGB")
    image.save(images / "0.png")
    assert run("detect", images / "0.png", "--checkpoint", path, "--score", 0, "--output", tmp_path / "out") == 0
    expected = prediction.detect(model, image, own, score_threshold=0)
    records = results(tmp_path / "out")[0]["detections"]
    assert [record["score"] for record in records] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    size = torch.tensor([record["bbox"] for record in records])
    torch.testing.assert_close(size[:, 2:], expected.boxes[:, 2:] - expected.boxes[:, :2], atol=0.02, rtol=0)


def test_large_images_in_windows(
    run: Run, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    Image.effect_noise((300, 100), 90).convert("RGB").save(tmp_path / "scan.tif")
    options = ("--checkpoint", segmenter, "--full-size", "--window", 64, "--output", tmp_path / "out")
    assert run("segment", tmp_path / "scan.tif", *options) == 1
    assert "max-pixels" in capsys.readouterr().err.replace("_", "-")
    assert run("segment", tmp_path / "scan.tif", *options, "--max-pixels", 30_000, "--overwrite") == 0
    monkeypatch.undo()
    with Image.open(tmp_path / "out" / "scan_labels.png") as labels:
        assert labels.size == (300, 100)


@pytest.mark.parametrize("command", ["predict", "detect", "segment"])
def test_weights_for_grey_images_take_photographs(
    command: str, run: Run, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = VMambaConfig(dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), in_chans=1, num_classes=2)
    backbone = dataclasses.replace(config, num_classes=0)
    model: Any = {
        "predict": lambda: VMamba(config),
        "detect": lambda: MaskRCNN(MaskRCNNConfig(backbone, ("a", "b"), 8, 8, 8)),
        "segment": lambda: UperNet(UperNetConfig(backbone, ("a", "b"), 8, 8)),
    }[command]()
    path = save_weights(model, tmp_path / "grey.safetensors")
    output = () if command == "predict" else ("--output", tmp_path / "out")
    assert run(command, images, "--checkpoint", path, "--image-size", 64, *output, "--json") == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


@pytest.mark.parametrize("command", ["detect", "segment"])
def test_quiet_prints_nothing_that_is_written(
    command: str, run: Run, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: Any
) -> None:
    checkpoint = request.getfixturevalue({"detect": "detector", "segment": "segmenter"}[command])
    arguments = (
        command,
        images,
        "--checkpoint",
        checkpoint,
        "--image-size",
        64,
        "--output",
        tmp_path / "out",
        "--quiet",
    )
    assert run(*arguments) == 0
    assert capsys.readouterr() == ("", "")
    assert run(*arguments, "--json", "--overwrite") == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


def test_sizes_are_refused_once_and_outputs_must_be_folders(
    fails: Fails, detector: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    command = ("detect", images, "--checkpoint", detector, "--output")
    assert "image_size must be from 32 to max_size, got 8 and 1333" in fails(
        *command, tmp_path / "o", "--image-size", 8
    )
    assert fails(*command, file).endswith("file: File exists; choose another place for the output")
    assert fails(*command, file / "o").endswith(
        "o: Not a directory; a part of the path is a file; choose another place"
    )
    with pytest.raises(SystemExit):
        fails(*command, tmp_path / "o", "--score", "nan")
    assert "argument --score: invalid fraction value: 'nan'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
