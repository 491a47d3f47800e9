"""Data sets of the Hugging Face hub, here from a local table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vmamba.data.hugging_face import HuggingFaceImages
from vmamba.data.image_dataset import ImageDataset
from vmamba.errors import DataError

datasets = pytest.importorskip("datasets")

CLASSES = ("cat", "dog", "emu")


def level(image: Image.Image) -> Tensor:
    return torch.tensor(float(np.asarray(image)[0, 0, 0]))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a table of three images with the labels and columns that it is given; its folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (8, 8), (40 * i,) * 3).save(paths[-1])

    def write(labels: list[int], kind: Any, image: str = "image") -> str:
        features = datasets.Features({image: datasets.Image(), "label": kind})
        rows = datasets.Dataset.from_dict({image: paths, "label": labels}, features=features)
        (tmp_path / "table").mkdir()
        rows.to_parquet(tmp_path / "table" / "train.parquet")
        return str(tmp_path / "table")

    return write


def test_images_and_classes(table: Any) -> None:
    files = HuggingFaceImages(table([2, 0, 1], datasets.ClassLabel(names=list(CLASSES))), "train")
    images = ImageDataset(files, level)
    assert files.classes == {"cat": 0, "dog": 1, "emu": 2}
    assert [(float(images[i].pixels), images[i].label) for i in range(3)] == [(0, 2), (40, 0), (80, 1)]
    assert files.name(1).endswith("1.png")


def test_numbers_without_names(table: Any) -> None:
    assert HuggingFaceImages(table([0, 2, 1], datasets.Value("int64")), "train").classes == {"0": 0, "1": 1, "2": 2}


def test_what_cannot_be_used(table: Any) -> None:
    name = table([0, -1, 1], datasets.Value("int64"))
    with pytest.raises(DataError, match="the column 'label' of the split 'train' does not hold class numbers"):
        HuggingFaceImages(name, "train")
    with pytest.raises(DataError, match="cannot load the data set's split 'nothing'"):
        HuggingFaceImages(name, "nothing")


def test_other_columns(table: Any) -> None:
    name = table([0, 1, 2], datasets.Value("int64"), image="img")
    with pytest.raises(DataError, match="has no column 'image', but img, label"):
        HuggingFaceImages(name, "train")
