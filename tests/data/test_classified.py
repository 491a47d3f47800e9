"""Folders, tar files and Hugging Face data sets give the same images."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vmamba.data.classified import (
    ClassifiedImages,
    class_numbers,
    find_split,
    hold_out,
    median_side,
    open_folder,
    open_hugging_face,
)
from vmamba.tasks.classification.task import Classification, ClassificationOptions
from vmamba.tasks.protocol import Job

CLASSES = ("cat", "dog", "emu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of each class; the level of grey is 40 × class + number."""
    for split in ("train", "val"):
        for label, name in enumerate(CLASSES):
            target = tmp_path / split / name
            target.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (20 + i, 30), (40 * label + i,) * 3).save(target / f"{i}.png")
    return tmp_path


def level(image: Image.Image) -> Tensor:
    return torch.tensor(float(np.asarray(image)[0, 0, 0]))


def contents(images: ClassifiedImages) -> list[tuple[float, int]]:
    return sorted((float(images[i].pixels), images[i].label) for i in range(len(images)))


EXPECTED = [(40.0 * label + i, label) for label in range(3) for i in range(6)]


def test_folder(folder: Path) -> None:
    reader = open_folder(str(folder / "train"))
    images = ClassifiedImages(reader, level)
    assert class_numbers(reader) == {"cat": 0, "dog": 1, "emu": 2}
    assert contents(images) == EXPECTED
    assert Path(images[0].name).is_file()
    assert median_side(images) == round(float(np.median([(30 * (20 + i)) ** 0.5 for i in range(6)])))


def test_tar(folder: Path) -> None:
    with tarfile.open(folder / "images.tar", "w") as file:
        for name in CLASSES:
            file.add(folder / "train" / name, name)
    reader = open_folder(str(folder / "images.tar"))
    images = ClassifiedImages(reader, level)
    assert class_numbers(reader) == {"cat": 0, "dog": 1, "emu": 2}
    assert median_side(images) > 20  # and leaves no archive open that loader processes would share
    assert reader.tar_state.tf is None
    assert contents(images) == EXPECTED
    reader.tar_state.tf.close()


def test_hugging_face(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    paths = sorted((folder / "train").rglob("*.png"))
    labels = [CLASSES.index(path.parent.name) for path in paths]
    rows = datasets.Dataset.from_dict({"image": [str(p) for p in paths], "label": labels}, features=features)
    (folder / "table").mkdir()
    rows.to_parquet(folder / "table" / "train.parquet")
    reader = open_hugging_face(str(folder / "table"), "train")
    assert class_numbers(reader) == {"cat": 0, "dog": 1, "emu": 2}
    assert contents(ClassifiedImages(reader, level)) == EXPECTED
    kept, held = hold_out(reader, 0.34, seed=0)
    assert sorted(kept + held) == list(range(18))
    with pytest.raises(ValueError, match="cannot load the data set's split 'nothing'"):
        open_hugging_face(str(folder / "table"), "nothing")


def test_splits(folder: Path) -> None:
    assert find_split(str(folder), "val") == str(folder / "val")
    (folder / "val").rename(folder / "validation")
    assert find_split(str(folder), "val") == str(folder / "validation")
    (folder / "validation").rename(folder / "other")
    assert find_split(str(folder), "val") is None


def test_hold_out_takes_a_share_of_every_class(folder: Path) -> None:
    reader = open_folder(str(folder / "train"))
    kept, held = hold_out(reader, 0.34, seed=1)
    assert sorted(kept + held) == list(range(18))
    assert sorted(reader.samples[i][1] for i in held) == [0, 0, 1, 1, 2, 2]
    assert (kept, held) == hold_out(reader, 0.34, seed=1)
    assert (kept, held) != hold_out(reader, 0.34, seed=2)


@pytest.mark.parametrize(("side", "size"), [(8, 32), (33, 64), (500, 224)])
def test_image_size_follows_the_images(tmp_path: Path, side: int, size: int) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (side, side)).save(tmp_path / "train" / "a" / "0.png")
    task = Classification(Job(str(tmp_path), "vmamba_pico"), ClassificationOptions())
    assert task.image_size == size
    pretrained = Classification(Job(str(tmp_path), "vmamba_tiny_s1l8", pretrained=True), ClassificationOptions())
    assert pretrained.image_size == 224
