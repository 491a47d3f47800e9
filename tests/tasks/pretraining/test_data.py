"""Images without labels from any tree, tar file, data set or shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data.image_tree import ImageTree
from vmamba.errors import DataError, OptionError
from vmamba.tasks.pretraining.lejepa import LeJEPA
from vmamba.tasks.pretraining.options import LeJEPAOptions, SimMIMOptions
from vmamba.tasks.pretraining.simmim import SimMIM
from vmamba.tasks.pretraining.task import ViewBatch
from vmamba.tasks.protocol import Job, Loader

SMALL = {"global_views": 1, "local_views": 1}


def write(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 36, 3), level, np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Forty images at several depths, with what does not belong to them."""
    root = tmp_path / "photographs"
    for i in range(40):
        folder = ("", "2023", "2023/05", "cat")[i % 4]
        write(root / folder / f"{i}.png", i)
    (root / "notes.txt").write_text("-")
    write(root / ".thumbnails" / "0.png")
    return root


def task(data: Path | str, **options: Any) -> LeJEPA:
    job = Job(data=str(data), model="vmamba_pico", batch_size=4, workers=0)
    made = LeJEPA(job, LeJEPAOptions(**SMALL, **options))
    made.setup()
    return made


def batches(loader: Loader, epoch: int = 0, start: int = 0) -> list[ViewBatch]:
    return [cast(ViewBatch, batch) for batch in loader.batches(epoch, start)]


def test_any_tree(tree: Path) -> None:
    """All images, a twentieth of them held out, none twice; no classes are taken from folders."""
    data = task(tree).data
    assert len(data.train_indices) == 38
    assert len(data.val_indices) == 2
    assert sorted([*data.train_indices, *data.val_indices]) == list(range(40))
    summary = task(tree).summary(verify=True)
    assert [part.images for part in summary.splits] == [38, 2]
    assert any("1 .txt files" in line for line in summary.remarks())
    assert any("no classes are known" in line for line in summary.remarks())


def test_tar_file(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as file:
        file.add(tree, "photographs")
    assert len(ImageTree(tmp_path / "all.tar")) == 40
    assert len(task(tmp_path / "all.tar", holdout=0.5).data.train_indices) == 20


def test_splits_and_classes(tmp_path: Path) -> None:
    """With train/ and val/ nothing of val is trained on, and classes of val let neighbours vote."""
    for i in range(8):
        write(tmp_path / "train" / ("cat", "dog")[i % 2] / f"{i}.png", i)
        write(tmp_path / "val" / ("cat", "dog")[i % 2] / f"{i}.png", 100 + i)
    made = task(tmp_path)
    assert all("/train/" in made.data.train.name(i) for i in made.data.train_indices)
    first, second = batches(made.val_loader())
    assert [*first.labels.tolist(), *second.labels.tolist()] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert first.images.shape == (4, 3, 64, 64)


def test_views(tree: Path) -> None:
    """Sizes of the views; the same views whenever a batch is asked for."""
    made = task(tree, image_size=96, local_size=32)
    assert [draw[0] for draw in made.views()] == [1, 1]
    one, other = (batches(made.train_loader(), 3, 2)[0] for _ in range(2))
    assert [tuple(views.shape) for views in one.views] == [(1, 4, 3, 96, 96), (1, 4, 3, 32, 32)]
    assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    assert one.images.numel() == 0


def write_shard(path: Path, first: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number in range(first, first + 6):
            content = io.BytesIO()
            Image.new("RGB", (40, 40), (number, 0, 0)).save(content, "PNG")
            info = tarfile.TarInfo(f"{number:03d}.png")
            info.size = len(content.getvalue())
            file.addfile(info, io.BytesIO(content.getvalue()))


def test_shards_without_classes(tmp_path: Path) -> None:
    for i in range(2):
        write_shard(tmp_path / "train" / f"{i}.tar", 6 * i)
    write_shard(tmp_path / "val" / "0.tar", 100)
    made = task(tmp_path, format="shards", image_size=32)
    assert [part.images for part in made.summary().splits] == [12, 6]
    drawn = batches(made.train_loader())
    assert len({name for batch in drawn for name in batch.files}) == 12
    assert all(set(batch.labels.tolist()) == {-1} for batch in drawn)


def test_hugging_face_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for i in range(8):
        write(tmp_path / "images" / f"{i}.png", i)
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": sorted(map(str, (tmp_path / "images").iterdir()))}, features=features)
    (tmp_path / "table").mkdir()
    rows.to_parquet(tmp_path / "table" / "train.parquet")
    made = task(tmp_path / "table", format="huggingface", holdout=0.25)
    assert [part.images for part in made.summary().splits] == [6, 2]
    assert batches(made.train_loader())[0].size == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_scale": [0.9, 0.1]}, "global_scale must be a range from 0.0001 to 1, got 0.9 to 0.1"),
        ({"local_views": 0, "global_views": 1}, "two views of an image are needed"),
        ({"format": "shards", "holdout": 0.1}, "put some of them into val/"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LeJEPAOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 48}, "image_size must be a multiple of 32 to predict every pixel, got 48"),
        ({"image_size": 64, "mask_size": 24}, r"mask_size must divide image_size \(64\) and be smaller, got 24"),
    ],
)
def test_impossible_masks(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SimMIM(Job(data=str(tree), model="vmamba_pico"), SimMIMOptions(**options)).setup()


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("-")
    with pytest.raises(DataError, match="holds no images; name a folder with") as caught:
        task(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no such folder"):
        task(tmp_path / "nowhere")
