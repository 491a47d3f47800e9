"""Shards made here, read by several processes with several loader processes each."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data.shard_files import find_shards
from vmamba.data.shards import ShardLoader, read_shards
from vmamba.errors import DataError, ImageError

SHARDS, LENGTH = 8, 12


def write_shard(path: Path, first: int, count: int, broken: int | None = None, ending: str = "png") -> None:
    """Grey images whose level is their number."""
    with tarfile.open(path, "w") as file:
        for number in range(first, first + count):
            content = io.BytesIO()
            image = Image.fromarray(np.full((8, 8), number, np.uint8))
            image.save(content, Image.registered_extensions()[f".{ending.lower()}"])
            pixels = b"not an image" if number == broken else content.getvalue()
            for name, data in ((f"{number:04d}.{ending}", pixels), (f"{number:04d}.cls", str(number % 5).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    for i in range(SHARDS):
        write_shard(tmp_path / "train" / f"{i:03d}.tar", i * LENGTH, LENGTH)
    return tmp_path


def sample(image: Image.Image, label: int, name: str) -> tuple[int, int, float]:
    """Its number, its class, and something random."""
    number = int(np.asarray(image)[0, 0, 0])
    assert label == number % 5
    assert f"{number:04d}" in name
    return number, label, float(torch.rand(()))


def loader(
    root: Path, rank: int = 0, world_size: int = 1, **options: object
) -> ShardLoader[list[tuple[int, int, float]]]:
    settings: dict[str, object] = {"batch_size": 4, "training": True, "workers": 2, "seed": 3, **options}
    shards = find_shards(str(root), "train")
    return ShardLoader(shards, sample, list, rank=rank, world_size=world_size, **settings)  # type: ignore[arg-type]


def numbers(batches: Iterator[list[tuple[int, int, float]]]) -> list[int]:
    return [number for batch in batches for number, _, _ in batch]


def test_two_processes_of_two_workers_see_every_sample_once(root: Path) -> None:
    orders = []
    for epoch in (0, 1):
        parts = [numbers(loader(root, rank, 2).batches(epoch)) for rank in (0, 1)]
        assert len(parts[0]) == len(parts[1]) == SHARDS * LENGTH // 2
        assert sorted(parts[0] + parts[1]) == list(range(SHARDS * LENGTH))
        orders.append(parts[0] + parts[1])
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_validation_sees_every_sample_once(root: Path) -> None:
    """Also where shards, samples and batches do not divide."""
    write_shard(root / "train" / "900.tar", SHARDS * LENGTH, 5)
    parts = [numbers(loader(root, rank, 2, training=False).batches(0)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(SHARDS * LENGTH + 5))


@pytest.mark.parametrize("start", [1, 7])
def test_starts_at_any_batch(root: Path, start: int) -> None:
    """With the same samples, drawn the same."""
    whole = list(loader(root).batches(1))
    assert list(loader(root).batches(1, start)) == whole[start:]


@pytest.mark.parametrize("ending", ["BMP", "tif", "gif"])
def test_images_of_every_ending(tmp_path: Path, ending: str) -> None:
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train" / "0.tar", 0, 12, ending=ending)
    assert sorted(numbers(loader(tmp_path, workers=0).batches(0))) == list(range(12))


def test_samples_are_counted_by_class(root: Path) -> None:
    assert find_shards(str(root), "train").counts == {label: len(range(label, 96, 5)) for label in range(5)}
    with tarfile.open(root / "train" / "900.tar", "w") as file:
        file.addfile(tarfile.TarInfo("a.cls"))
    assert find_shards(str(root), "train").counts[-1] == 1


def test_uneven_shards_leave_processes_in_step(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for i, count in enumerate((3, 20, 9, 8)):
        write_shard(tmp_path / "train" / f"{i}.tar", 20 * i, count)
    loaders = [loader(tmp_path, rank, 2) for rank in (0, 1)]
    for one in loaders:
        assert len(one) == 40 // 8 == len(list(one.batches(0)))


def test_unreadable_images_are_replaced_and_listed(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_shard(tmp_path / "train" / "0.tar", 0, 12, broken=5)
    found = loader(tmp_path, workers=0)
    got = numbers(found.batches(0))
    assert len(got) == 12
    assert set(got) == set(range(12)) - {5}
    assert len(found.skipped) == 1
    assert "0005" in found.skipped[0]
    with pytest.raises(ImageError, match="0005"):
        list(loader(tmp_path, workers=0, strict=True).batches(0))


def test_information_file(root: Path) -> None:
    """timm's `_info.json` names the shards, so that nothing needs to be counted."""
    names = sorted(p.name for p in (root / "train").glob("*.tar"))
    split = {"filenames": [f"train/{name}" for name in names[:2]], "shard_lengths": [LENGTH] * 2}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    assert find_shards(str(root), "train").samples == 2 * LENGTH
    with pytest.raises(ValueError, match=r"_info\.json: has no splits\.val; it must list filenames"):
        find_shards(str(root), "val")


def test_impossible(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 shards cannot feed 9 loader processes"):
        loader(root, workers=9)
    with pytest.raises(ValueError, match="96 images are fewer than one batch of 200"):
        loader(root, batch_size=200)
    with pytest.raises(ValueError, match="no shards nothing/"):
        find_shards(str(tmp_path), "nothing")
    (root / "train" / "bad.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"bad\.tar: cannot read the shard"):
        find_shards(str(root), "train")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"filenames": "000.tar"}, 'splits.train.filenames is "000.tar"'),
        ({"filenames": []}, r"splits.train.filenames is \[\]"),
        ({"filenames": [1]}, "splits.train.filenames.0 is 1"),
        ({"shard_lengths": [1.5]}, "splits.train.shard_lengths.0 is 1.5"),
        ({"shard_lengths": [-1]}, "splits.train.shard_lengths.0 is -1"),
        ({"shard_lengths": [True]}, "splits.train.shard_lengths.0 is true"),
        ({"shard_lengths": [1, 2]}, "has 1 filenames and 2 shard_lengths"),
        ({"shard_lengths": None}, "splits.train.shard_lengths is null"),
    ],
)
def test_information_files_that_cannot_be_meant(root: Path, change: dict[str, object], fault: str) -> None:
    split = {"filenames": ["train/000.tar"], "shard_lengths": [LENGTH], **change}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with pytest.raises(DataError, match=f"_info.json: .*{fault}"):
        find_shards(str(root), "train")


@pytest.mark.parametrize("content", ["[1]", '{"splits": 3}', "{", "[" * 100_000, ""], ids=len)
def test_information_files_that_are_none(root: Path, content: str) -> None:
    (root / "_info.json").write_text(content)
    gc.collect()  # what is collected as deep as this recurses cannot clean up
    with pytest.raises(DataError, match=r"_info\.json: ") as caught:
        find_shards(str(root), "train")
    assert "\n" not in str(caught.value)


def test_every_sample_is_read_when_asked(root: Path) -> None:
    """Unreadable images, labels that no class has, shards that are cut off or whose header is damaged."""
    assert read_shards(find_shards(str(root), "train"), 5) == (SHARDS * LENGTH, [])
    write_shard(root / "train" / "001.tar", 0, LENGTH, broken=5)
    names = sorted(p.name for p in (root / "train").glob("*.tar"))
    split = {"filenames": [f"train/{name}" for name in names], "shard_lengths": [LENGTH] * SHARDS}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    whole = (root / "train" / "002.tar").read_bytes()
    (root / "train" / "002.tar").write_bytes(whole[: len(whole) // 3 - 300])
    (root / "train" / "003.tar").write_bytes(b"\xff" * 700)
    good, problems = read_shards(find_shards(str(root), "train"), 4)
    assert sum("001.tar:0005: it is not an image" in line for line in problems) == 1
    assert sum("its class is 4, but num_classes is 4" in line for line in problems) > 10
    assert sum("002.tar: cannot read the shard" in line for line in problems) == 1
    assert sum("003.tar: cannot read the shard" in line for line in problems) == 1
    assert 30 < good < SHARDS * LENGTH


def test_a_damaged_header_is_not_the_end(root: Path) -> None:
    path = root / "train" / "001.tar"
    content = bytearray(path.read_bytes())
    content[content.index(b"0018.png") + 1] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"001\.tar: cannot read the shard: a member is damaged"):
        find_shards(str(root), "train")
