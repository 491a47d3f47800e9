"""The splits of a classification data set, and what is said of them before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vmamba.errors import DataError
from vmamba.tasks.classification.task import Classification, ClassificationOptions
from vmamba.tasks.protocol import Job


def write(root: Path, **numbers: int) -> None:
    """So many images per folder, ``train__cat=3``."""
    for name, number in numbers.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(number):
            Image.new("RGB", (8, 8)).save(folder / f"{i}.png")


def task(root: Path, **options: object) -> Classification:
    return Classification(Job(data=str(root), model="vmamba_pico"), ClassificationOptions(**options))  # type: ignore[arg-type]


def test_counts_and_remarks(tmp_path: Path) -> None:
    write(tmp_path, train__cat=3, train__dog=2, train__emu=1, val__cat=1, val__dog=2)
    (tmp_path / "train" / "cat" / "notes.txt").touch()
    (tmp_path / "train" / ".DS_Store").touch()
    summary = task(tmp_path).summary()
    assert [dict(part.counts) for part in summary.splits] == [
        {"cat": 3, "dog": 2, "emu": 1},
        {"cat": 1, "dog": 2, "emu": 0},
    ]
    assert [part.images for part in summary.splits] == [6, 3]
    assert summary.remarks() == ["train: left out 1 hidden or system entries, 1 .txt files", "val: no images of 'emu'"]
    assert json.loads(json.dumps(summary.as_dict()))["splits"][1]["counts"]["dog"] == 2


def test_nested_folders_count_in_validation(tmp_path: Path) -> None:
    write(tmp_path, train__cat=1, train__dog=1, val__cat__2023=2, val__dog__2024=3)
    assert list(task(tmp_path).summary().splits[1].counts.values()) == [2, 3]
    assert len(task(tmp_path).val_loader()) == 5


def test_held_out_images(tmp_path: Path) -> None:
    """A class of one image stays in training, and an unused split is named."""
    write(tmp_path, train__cat=4, train__dog=1)
    summary = task(tmp_path, holdout=0.5).summary()
    assert [list(part.counts.values()) for part in summary.splits] == [[2, 1], [2, 0]]
    assert "not held out, since there is only one image: dog" in summary.remarks()
    write(tmp_path, val__cat=1)
    assert f"{tmp_path}/val is not used, since holdout is 0.5" in task(tmp_path, holdout=0.5).summary().remarks()


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    write(tmp_path, train__cat=1)
    with pytest.raises(DataError, match="has no validation split"):
        task(tmp_path).summary()
    write(tmp_path, val__cat=1)
    with pytest.raises(DataError, match="nothing to tell apart, all images are of the class 'cat'"):
        task(tmp_path).summary()
    write(tmp_path, train__dog=1, train__emu=1)
    with pytest.raises(DataError, match="has 3 classes, but num_classes is 2"):
        task(tmp_path, num_classes=2).summary()
    with pytest.raises(DataError, match="no image is left to validate on"):
        task(tmp_path, holdout=0.5).summary()


@pytest.mark.parametrize(("side", "size"), [(8, 32), (33, 64), (500, 224)])
def test_image_size_follows_the_images(tmp_path: Path, side: int, size: int) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (side, side)).save(tmp_path / "train" / name / "0.png")
    scratch = task(tmp_path)
    scratch.setup()
    assert scratch.image_size == scratch.options.image_size == scratch.preprocessing.image_size == size
    job = Job(data=str(tmp_path), model="vmamba_tiny_s1l8", pretrained=True)
    pretrained = Classification(job, ClassificationOptions())
    pretrained.setup()
    assert pretrained.image_size == 224
