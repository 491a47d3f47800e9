"""Class folders and tar files of them: the class is the first folder, whatever people keep around their images."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vmamba.data.class_names import natural_key
from vmamba.data.image_dataset import ImageDataset, hold_out, median_size
from vmamba.data.image_folder import ImageFolder, find_split
from vmamba.data.tar import list_tar, open_member
from vmamba.errors import DataError, ImageError

CLASSES = ("cat", "dog", "emu")
EXPECTED = [(40.0 * label + i, label) for label in range(3) for i in range(6)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder train with six images of each class; the level of grey is 40 × class + number."""
    for label, name in enumerate(CLASSES):
        target = tmp_path / "train" / name
        target.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20 + i, 30), (40 * label + i,) * 3).save(target / f"{i}.png")
    return tmp_path


def level(image: Image.Image) -> Tensor:
    return torch.tensor(float(np.asarray(image)[0, 0, 0]))


def contents(files: ImageFolder) -> list[tuple[float, int]]:
    images = ImageDataset(files, level)
    return sorted((float(images[i].pixels), images[i].label) for i in range(len(images)))


def pack(folder: Path, path: Path, prefix: str = "") -> Path:
    """A tar file of what is in a folder."""
    with tarfile.open(path, "w") as file:
        for entry in sorted(folder.iterdir()):
            file.add(entry, f"{prefix}{entry.name}")
    return path


def as_tar(folder: Path) -> Path:
    return pack(folder, folder.with_suffix(".tar"))


def as_folder(folder: Path) -> Path:
    return folder


BOTH = pytest.mark.parametrize("kind", [as_folder, as_tar])


@BOTH
def test_a_class_is_a_folder(root: Path, kind: type[Path]) -> None:
    files = ImageFolder(kind(root / "train"))
    assert files.classes == {"cat": 0, "dog": 1, "emu": 2}
    assert contents(files) == EXPECTED
    assert not +files.left_out
    assert all(Path(files.name(i).replace("train.tar:", "train/")).is_file() for i in range(len(files)))
    assert median_size(files) == round(float(np.median([(30 * (20 + i)) ** 0.5 for i in range(6)])))


@BOTH
def test_a_class_is_the_first_folder(root: Path, kind: type[Path]) -> None:
    """Folders within it, even of the same names, are no classes."""
    for name, year in (("cat", "2023"), ("dog", "2024"), ("emu", "2024")):
        (root / "train" / name / year / "deep").mkdir(parents=True)
        for i in range(3):
            place = root / "train" / name / year / ("deep" if i else ".")
            (root / "train" / name / f"{i}.png").rename(place / f"{i}.png")
    files = ImageFolder(kind(root / "train"))
    assert files.classes == {"cat": 0, "dog": 1, "emu": 2}
    assert contents(files) == EXPECTED


@BOTH
def test_what_is_left_out_is_counted(root: Path, kind: type[Path]) -> None:
    train = root / "train"
    for name in (".ipynb_checkpoints/0.png", "__MACOSX/cat/._0.png", "cat/.DS_Store", "cat/notes.txt", "stray.png"):
        (train / name).parent.mkdir(exist_ok=True, parents=True)
        (train / name).touch()
    files = ImageFolder(kind(train))
    assert contents(files) == EXPECTED
    assert files.left_out == {
        "hidden or system entries": 3,
        ".txt files": 1,
        "images outside class folders": 1,
    }


@BOTH
def test_every_ending_is_an_image(root: Path, kind: type[Path]) -> None:
    for number, ending in enumerate(("WEBP", "tif", "tiff", "bmp", "gif", "jfif")):
        file = root / "train" / "cat" / f"{number}.png"
        Image.open(file).convert("RGB").save(root / "train" / "cat" / f"{number}.{ending}")
        file.unlink()
    files = ImageFolder(kind(root / "train"))
    assert len(files) == 18
    assert not +files.left_out


def test_links_multiply_nothing(root: Path) -> None:
    (root / "train" / "cat" / "up").symlink_to("..")
    (root / "train" / "kitten").symlink_to("cat")
    files = ImageFolder(root / "train")
    assert files.classes == {"cat": 0, "dog": 1, "emu": 2}
    assert contents(files) == EXPECTED
    assert list(files.left_out.values()) == [2]


def test_classes_of_training_number_those_of_validation(root: Path) -> None:
    """Also where the file system writes é as two characters."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (root / "train" / "dog").rename(root / "train" / decomposed)
    (root / "val" / composed).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "val" / composed / "0.png")
    classes = ImageFolder(root / "train").classes
    assert classes == {composed: 0, "cat": 1, "emu": 2}
    files = ImageFolder(root / "val", classes)
    assert files.labels.tolist() == [classes[composed]]
    (root / "val" / "gnu").mkdir()
    Image.new("RGB", (8, 8)).save(root / "val" / "gnu" / "0.png")
    with pytest.raises(DataError, match="val/gnu: the class 'gnu' is not among the training classes"):
        ImageFolder(root / "val", classes)


@BOTH
def test_class_names_are_printable(root: Path, kind: type[Path]) -> None:
    for number, name in enumerate((b"caf\xe9", b"two\nlines", b"\x1b[31mred")):
        (root / "train" / CLASSES[number]).rename(root / "train" / os.fsdecode(name))
    names = list(ImageFolder(kind(root / "train")).classes)
    assert sorted(names) == ["\\x1b[31mred", "caf\\udce9", "two\\nlines"]
    assert "".join(names).encode()


def test_numbers_within_names_count() -> None:
    names = ["a10", "A2", "b", "a2", "1²", "x1"]
    assert sorted(names, key=natural_key) == ["1²", "A2", "a2", "a10", "b", "x1"]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("dog/*", "train/dog: the class folder holds no images; fill it or remove it"),
        ("*/*", "train/cat: the class folder holds no images"),
        ("*", "no images in class folders; put them into one folder per class"),
    ],
)
def test_missing_images(root: Path, remove: str, message: str) -> None:
    for path in sorted((root / "train").glob(remove)):
        if path.is_dir():
            path.rename(root / path.name)
        else:
            path.unlink()
    with pytest.raises(DataError, match=message):
        ImageFolder(root / "train")


def test_images_without_folders(root: Path) -> None:
    for path in (root / "train").iterdir():
        path.rename(root / path.name)
    Image.new("RGB", (8, 8)).save(root / "train" / "a.png")
    with pytest.raises(DataError, match=r"no images in class folders \(1 lie outside of any\)"):
        ImageFolder(root / "train")


def test_splits(root: Path) -> None:
    assert find_split(str(root), "val") is None
    for name in ("test", "valid", "validation", "val.tar", "val"):
        (root / name).touch()
        assert find_split(str(root), "val") == str(root / name)
    with pytest.raises(DataError, match="no such folder"):
        find_split(str(root / "gone"), "train")


# Tar files


@pytest.mark.parametrize("prefix", ["./", "train/", "./train/", "/"])
def test_tar_below_a_folder_of_its_name(root: Path, prefix: str) -> None:
    files = ImageFolder(pack(root / "train", root / "train.tar", prefix))
    assert files.classes == {"cat": 0, "dog": 1, "emu": 2}
    assert contents(files) == EXPECTED


def test_tar_of_tars(root: Path) -> None:
    """ImageNet's training images come so."""
    with tarfile.open(root / "images.tar", "w") as file:
        for name in CLASSES:
            file.add(pack(root / "train" / name, root / f"{name}.tar"), f"{name}.tar")
    files = ImageFolder(root / "images.tar")
    assert files.classes == {"cat": 0, "dog": 1, "emu": 2}
    assert contents(files) == EXPECTED


def test_links_in_a_tar_file(root: Path) -> None:
    os.link(root / "train" / "cat" / "0.png", root / "train" / "cat" / "9.png")
    (root / "train" / "dog" / "9.png").symlink_to("0.png")
    files = ImageFolder(as_tar(root / "train"))
    assert contents(files) == [EXPECTED[0], *EXPECTED]
    assert files.left_out == {"archive members that are no ordinary files": 1}


def test_places_are_those_of_the_content(root: Path) -> None:
    path = as_tar(root / "train")
    for name, place in list_tar(str(path), Counter()).items():
        assert open_member(str(path), place).read() == (root / "train" / name).read_bytes()


def test_tar_files_that_cannot_be_read(root: Path) -> None:
    path = as_tar(root / "train")
    content = path.read_bytes()
    negative = bytearray(content)
    negative[124:136] = b"\xff" * 12  # a size below zero would lead back to the same member for ever
    check = sum(negative[:148]) + 8 * 32 + sum(negative[156:512])
    negative[148:156] = b"%06o\0 " % check
    for damaged in (content[:700], content[: len(content) // 2 + 100], b"x" * 2000, b"", bytes(negative)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"train\.tar: (cannot read the tar file|no images)") as error:
            ImageFolder(path)
        assert "\n" not in str(error.value)
    with tarfile.open(path, "w:gz") as file:
        file.add(root / "train" / "cat", "cat")
    with pytest.raises(DataError, match="damaged or compressed"):
        ImageFolder(path)
    with pytest.raises(DataError, match="cannot read the tar file: No such file"):
        ImageFolder(root / "gone.tar")


# Data sets


def test_a_file_that_is_gone_is_an_unreadable_image(root: Path) -> None:
    files = ImageFolder(root / "train")
    (root / "train" / "cat" / "0.png").unlink()
    with pytest.raises(ImageError, match=r"cannot read the image .*0\.png: no such file"):
        ImageDataset(files, level)[0]


def test_hold_out_takes_a_fraction_of_every_class(root: Path) -> None:
    labels = ImageFolder(root / "train").labels
    kept, held = hold_out(labels, 0.34, seed=1)
    assert sorted(kept + held) == list(range(18))
    assert labels[held].tolist() == [0, 0, 1, 1, 2, 2]
    assert (kept, held) == hold_out(labels, 0.34, seed=1)
    assert (kept, held) != hold_out(labels, 0.34, seed=2)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 1.0])
def test_hold_out_leaves_every_class_an_image(fraction: float) -> None:
    labels = np.array([0, 1, 1, 2, 2, 2, 2])
    kept, held = hold_out(labels, fraction, seed=0)
    assert {*labels[kept]} == {0, 1, 2}
    assert {*labels[held]} == {1, 2}


def test_no_image_can_be_read(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(io.BytesIO(b"no image").read())
    with pytest.raises(DataError, match=r"none of the images can be used: .*0\.png: it is not an image"):
        median_size(ImageFolder(root / "train"))
