"""``vmamba check-data``: the summary of each kind of data set, as a table and as JSON."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.coco import write_coco
from vmamba.cli import main
from vmamba.data.shapes import write_shapes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 1)):
        for name in ("[red] cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["check-data", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(check(capsys, "--json", *arguments))
    return content


def test_table(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "train" / "stray.png").touch()
    lines = check(capsys, "--data", photos).splitlines()
    assert lines[0].startswith("train: ")
    assert [line.strip("│ ").split() for line in lines if "cat" in line] == [["[red]", "cat", "│", "3", "│", "1"]]
    assert "train: left out 1 images outside class folders" in lines


def test_verify(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "train" / "dog" / "1.png").write_bytes(b"")
    assert not as_json(capsys, "--data", photos)["splits"][0]["unreadable"]
    (line,) = as_json(capsys, "--data", photos, "--verify")["splits"][0]["unreadable"]
    assert "dog/1.png: the file is empty" in line
    assert "train: 1 files cannot be used:\n  cannot read the image" in check(capsys, "--data", photos, "--verify")


def test_the_task_is_what_the_folder_looks_like(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, ade = write_shapes(tmp_path / "shapes", train=8, val=2, image_size=64)
    for folder, task in ((photos, "classification"), (coco, "detection"), (ade, "segmentation")):
        assert as_json(capsys, "--data", folder)["task"] == task
    assert as_json(capsys, "--data", ade, "--recipe", "shapes/segmentation")["splits"][0]["images"] == 8
    assert as_json(capsys, "--data", photos, "--set", "holdout=0.4")["splits"][1]["images"] == 2


def test_faults_of_annotations_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"] *= 3
        for annotation in content["annotations"]:
            annotation["category_id"] = 9

    for split in ("train", "val"):
        write_coco(tmp_path, change, split)
    assert main(["check-data", "--data", str(tmp_path)]) == 2
    streams = capsys.readouterr()
    assert [line.split(" ")[0] for line in streams.out.splitlines()] == [f"annotations[{i}]" for i in range(6)]
    assert "json: 6 faults: annotations[0]" in streams.err


def test_what_cannot_be_trained_on(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "train" / "empty").mkdir()
    assert main(["check-data", "--data", str(photos)]) == 2
    assert "train/empty: the class folder holds no images" in capsys.readouterr().err
    assert main(["check-data", "--data", str(photos / "gone")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_verify_reads_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that an information file describes, which are not opened otherwise."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as file:
            for i in range(8):
                for ending, data in (("png", picture.getvalue() if i else b""), ("cls", b"%d" % (i % 2))):
                    info = tarfile.TarInfo(f"{i}.{ending}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
    content = (tmp_path / "val.tar").read_bytes()
    (tmp_path / "val.tar").write_bytes(content[:7000])
    splits = {split: {"filenames": [f"{split}.tar"], "shard_lengths": [8]} for split in ("train", "val")}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    options = ("--data", tmp_path, "--set", "format=shards", "num_classes=2")
    assert not any(part["unreadable"] for part in as_json(capsys, *options)["splits"])
    train, val = as_json(capsys, *options, "--verify")["splits"]
    assert [line.split(": ", 1)[1] for line in train["unreadable"]] == ["the file is empty"]
    assert len(val["unreadable"]) == 2
    assert "val.tar: cannot read the shard: a member is damaged" in val["unreadable"][1]
    assert "2 samples can be used, 8 were expected" in val["notes"]


@pytest.mark.parametrize("kind", ["folder", "tar", "shards", "coco", "ade20k"])
def test_large_images_on_request(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every format: refused, with the option that reads them."""
    options: tuple[str, ...] = ()
    if kind in ("coco", "ade20k"):
        write_shapes(tmp_path, train=4, val=2, image_size=64)
    for split in ("train", "val"):
        for i, name in enumerate(("cat", "dog")):
            if kind == "folder":
                (tmp_path / split / name).mkdir(parents=True)
                Image.new("RGB", (60, 60)).save(tmp_path / split / name / "0.png")
            elif kind in ("tar", "shards"):
                picture = io.BytesIO()
                Image.new("RGB", (60, 60)).save(picture, "PNG")
                with tarfile.open(tmp_path / f"{split}.tar", "a") as file:
                    for ending, content in ((".png", picture.getvalue()), (".cls", b"%d" % i)):
                        info = tarfile.TarInfo(f"{name}/0{ending}")
                        info.size = len(content)
                        file.addfile(info, io.BytesIO(content))
    if kind == "shards":
        options = ("--set", "format=shards", "num_classes=2")
    data = tmp_path / kind if kind in ("coco", "ade20k") else tmp_path
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    status = main(["check-data", "--data", str(data), *options, "--verify"])
    streams = capsys.readouterr()
    assert status == (0 if kind == "shards" else 2)  # of which nothing is looked at without being asked
    assert "--set max_pixels=N" in streams.out + streams.err
    summary = as_json(capsys, "--data", data, *options, "--verify", "--set", "max_pixels=100000")
    assert not any(part["unreadable"] for part in summary["splits"])
