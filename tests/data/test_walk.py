"""Which files below a folder are found."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from vmamba.data.images import find_images, image_endings
from vmamba.data.walk import BROKEN_LINK, HIDDEN, LINKED_BACK, SPECIAL, by_ending, walk


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def walked(root: Path) -> tuple[list[str], dict[str, int]]:
    left_out = Counter[str]()
    return list(walk(root, left_out)), dict(left_out)


def test_hidden_entries(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b.png", ".DS_Store", "a/.ipynb_checkpoints/1.png", "__MACOSX/a/._1.png", "a/Thumbs.db")
    assert walked(tmp_path) == (["a/1.png", "b.png"], {HIDDEN: 4})


def test_hidden_above_the_folder_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path, ".cache/data/1.png")
    assert walked(tmp_path / ".cache" / "data") == (["1.png"], {})


def test_order_is_by_the_parts_of_names(tmp_path: Path) -> None:
    write(tmp_path, "a/1", "a.b/1", "a-b", "b/c/1", "b/2")
    assert walked(tmp_path)[0] == ["a/1", "a-b", "a.b/1", "b/2", "b/c/1"]


def test_links_within_the_folder_give_nothing_twice(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    for name, target in (("cat/up", ".."), ("cat/self", "."), ("dog/other", "../cat"), ("dog/top", "../..")):
        (tmp_path / "train" / name).symlink_to(target)
    assert walked(tmp_path / "train") == (["cat/1.png", "dog/2.png"], {LINKED_BACK: 4})
    (tmp_path / "linked").symlink_to("train")
    assert walked(tmp_path / "linked") == (["cat/1.png", "dog/2.png"], {LINKED_BACK: 4})


def test_links_elsewhere_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path, "store/1.png", "store/sub/2.png", "train/cat/3.png")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")
    (tmp_path / "train" / "dog").symlink_to(tmp_path / "store")
    (tmp_path / "train" / "cat" / "4.png").symlink_to(tmp_path / "store" / "1.png")
    files, left_out = walked(tmp_path / "train")
    assert files == ["cat/3.png", "cat/4.png", "dog/1.png", "dog/sub/2.png"]
    assert left_out == {LINKED_BACK: 1}


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such files")
def test_what_is_no_file(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "3.png")
    assert walked(tmp_path) == (["1.png"], {BROKEN_LINK: 1, SPECIAL: 1})


def test_a_folder_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError):
        list(walk(tmp_path, Counter()))


def test_endings() -> None:
    left_out = Counter[str]()
    names = ["a.JPG", "b.jfif", "c.tif", "d.webp", "e.gif", "f.bmp", "g.txt", "h.TXT", "README", "i.heic.png"]
    assert list(by_ending(names, image_endings(), left_out)) == [*names[:6], "i.heic.png"]
    assert left_out == {".txt files": 2, "files without an ending": 1}


def test_names_that_no_terminal_should_see(tmp_path: Path) -> None:
    """Bytes that are not UTF-8, line breaks and escape codes are names like others."""
    names = [b"caf\xe9.png", b"two\nlines.png", b"\x1b[31mred.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    assert sorted(os.fsencode(path.name) for path in find_images([tmp_path])) == sorted(names)
