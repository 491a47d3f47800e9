"""ADE20K's layout, with what people keep in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmamba.data import ade20k
from vmamba.data.segmentation_folder import SegmentationFolder
from vmamba.errors import DataError, ImageError


def write(root: Path, name: str, values: Any, split: str = "training", size: tuple[int, int] = (6, 4)) -> None:
    """An image and its label map."""
    for part in ("images", "annotations"):
        (root / part / split / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(root / "images" / split / f"{name}.jpg")
    Image.fromarray(np.broadcast_to(np.array(values, np.uint8), (4, 6))).save(
        root / "annotations" / split / f"{name}.png"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, one image."""
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    write(tmp_path, "a", [0, 1, 2, 255, 1, 2])
    return tmp_path


def test_ade20k() -> None:
    assert len(ade20k.CLASSES) == len(set(ade20k.CLASSES)) == 150


def test_samples(root: Path) -> None:
    data = SegmentationFolder(root, "train")
    assert data.classes == ("sky", "sea")
    assert data[0]["labels"][0].tolist() == [255, 0, 1, 255, 0, 1]
    assert data[0]["image"].shape == (3, 4, 6)


def test_folders_within_splits_and_what_lies_around(root: Path) -> None:
    """Images of cities in folders of their own, names with dots, other endings."""
    write(root, "aachen/b.0", 2)
    write(root, "ulm/b.0", 1)
    (root / "annotations" / "training" / "Thumbs.db").write_bytes(b"x")
    (root / "images" / "training" / "notes.txt").touch()
    Image.fromarray(np.ones((4, 6), np.uint8)).save(root / "annotations" / "training" / "more.bmp")
    data = SegmentationFolder(root, "train")
    assert data.names == ["a", "aachen/b.0", "ulm/b.0"]
    assert [int(data[i]["labels"][0, 1]) for i in range(3)] == [0, 1, 0]
    assert data.left_out == {"hidden or system entries": 1, ".txt files": 1, "label maps without an image": 1}


def test_summary(root: Path) -> None:
    write(root, "a", [0, 1, 3, 255, 1, 3])
    write(root, "b", [1, 1, 1, 1, 1, 3])
    (root / "classes.txt").write_text("sky\nsand\nsea\n")
    summary = SegmentationFolder(root, "train").summary()
    assert (summary.images, summary.unit) == (2, "pixels")
    assert dict(summary.counts) == {"sky": 4 * 7, "sand": 0, "sea": 4 * 3}
    assert summary.notes == [
        "8.33% of the pixels have no class (value 0)",
        "8.33% of the pixels have no class (value 255)",
    ]
    assert not summary.unreadable


def test_maps_that_cannot_be_used_are_named(root: Path) -> None:
    for name in ("b", "c"):
        write(root, name, [1, 2, 1, 2, 1, 2])
    write(root, "d", 3)
    (line,) = SegmentationFolder(root, "train").summary().unreadable
    assert "d.png: has the value 3, where classes are 1 to 2 and 0 and 255 no class" in line
    write(root, "c", 1, size=(6, 5))
    lines = SegmentationFolder(root, "train").summary(verify=True).unreadable
    assert [line.rpartition("/")[2] for line in lines] == [
        "c.jpg: is 6×5 pixels, its annotation says 6×4",
        "d.png: has the value 3, where classes are 1 to 2 and 0 and 255 no class",
    ]
    for name in ("b", "c"):
        write(root, name, 7)
    with pytest.raises(DataError, match=r"3 of 4 label maps cannot be used: .* has the value 7"):
        SegmentationFolder(root, "train").summary()


def test_values_that_cannot_be_meant_end_before_training(root: Path) -> None:
    write(root, "a", [0, 0, 0, 0, 255, 255])
    with pytest.raises(DataError, match=r"annotations/training: .* --set label_values=\[0,255\]"):
        SegmentationFolder(root, "train").summary()
    summary = SegmentationFolder(root, "train", label_values=[0, 255]).summary()
    assert dict(summary.counts) == {"sky": 16, "sea": 8}


def test_images_turned_by_exif(root: Path) -> None:
    """The label map is of the stored pixels here."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(root / "images" / "training" / "a.jpg", exif=exif)
    assert SegmentationFolder(root, "train")[0]["image"].shape == (3, 4, 6)
    Image.new("RGB", (4, 6)).save(root / "images" / "training" / "a.jpg", exif=exif)
    assert SegmentationFolder(root, "train")[0]["image"].shape == (3, 4, 6)


def test_sizes_differ(root: Path) -> None:
    write(root, "a", 1, size=(6, 5))
    with pytest.raises(ImageError, match=r"a\.jpg: is 6×5 pixels, its annotation says 6×4"):
        SegmentationFolder(root, "train")[0]


def test_what_is_missing(root: Path) -> None:
    with pytest.raises(DataError, match="no folder images/validation; ADE20K's layout has it"):
        SegmentationFolder(root, "val")
    (root / "annotations/training/a.png").rename(root / "annotations/training/b.png")
    with pytest.raises(DataError, match=r"1 of 1 images have no label map of their name, a\.jpg first"):
        SegmentationFolder(root, "train")
    (root / "images/training/a.jpg").unlink()
    with pytest.raises(DataError, match="images/training: holds no images"):
        SegmentationFolder(root, "train")


def test_two_images_of_one_name(root: Path) -> None:
    Image.new("RGB", (6, 4)).save(root / "images" / "training" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png would share a label map"):
        SegmentationFolder(root, "train")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"sky\n", "names 1 classes, one per line; from 2 to 254"),
        (b"\n".join(b"%d" % i for i in range(255)), "names 255 classes"),
        (b"sky\nsea\nsky", "names the class 'sky' twice"),
        (b"caf\xe9\nsea", "it is not UTF-8 text"),
    ],
)
def test_class_lists(root: Path, content: bytes, reason: str) -> None:
    (root / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        SegmentationFolder(root, "train")
