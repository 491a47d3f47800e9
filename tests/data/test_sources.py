"""Images listed from files, folders, patterns, archives and lists."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from vmamba.data.sources import ImageRef, Shard, list_images
from vmamba.errors import ImageError, OptionError


def png(colour: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 3), (colour, 0, 0)).save(content, format="PNG")
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(["photos/a.png", "photos/sub/b.png", "photos/sub/a.png", "c.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    members = {"x/0.png": png(10), "x/0.cls": b"3", "1.jpg": png(11), ".x/2.png": png(12), "../../up.png": png(13)}
    write_tar(tmp_path / "shard.tar", members)
    write_tar(tmp_path / "shard.tar.gz", members, "w:gz")
    return tmp_path


def colour(ref: ImageRef) -> int:
    pixel = ref.read().getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def names(*sources: str) -> list[str]:
    return [ref.name for ref in list_images(sources)]


@pytest.mark.usefixtures("tree")
def test_sources_in_their_order() -> None:
    assert names("photos", "c.png") == ["photos/a.png", "photos/sub/a.png", "photos/sub/b.png", "c.png"]
    assert names("./photos/") == ["photos/a.png", "photos/sub/a.png", "photos/sub/b.png"]
    assert names("photos/*/b.*", "shard.tar") == [
        "photos/sub/b.png",
        "shard.tar:x/0.png",
        "shard.tar:1.jpg",
    ]
    assert names("*.tar") == names("shard.tar")


@pytest.mark.parametrize("archive", ["shard.tar", "shard.tar.gz", "pipe:cat shard.tar"])
@pytest.mark.usefixtures("tree")
def test_members_are_read_from_plain_and_streamed_archives(archive: str) -> None:
    refs = list(list_images([archive]))
    assert [colour(ref) for ref in refs] == [10, 11]
    assert all(ref.name.startswith(f"{archive}:") for ref in refs)
    assert [ref.below.split("/", 1)[1] for ref in refs] == ["x/0.png", "1.jpg"]


def test_images_in_a_store(tree: Path) -> None:
    """The store of this test is a folder, by its address."""
    url = f"file://{tree}/photos"
    refs = list(list_images([url, f"file://{tree}/c.png"]))
    assert [ref.name for ref in refs] == [
        *(f"{url}/{name}" for name in ("a.png", "sub/a.png", "sub/b.png")),
        f"file://{tree}/c.png",
    ]
    assert [ref.below for ref in refs] == ["a.png", "sub/a.png", "sub/b.png", "c.png"]
    assert [colour(ref) for ref in refs] == [0, 2, 1, 3]
    (tree / "list.txt").write_text(f"{url}/a.png\n{url}/gone.png\n")
    first, gone = list_images(["list.txt"])
    assert colour(first) == 0
    with pytest.raises(ImageError, match=r"cannot read the image file://.*gone\.png"):
        gone.read()
    for wrong, message in ((f"file://{tree}/none", "no images at"), ("warp://x/y", "no store that pyarrow reads")):
        with pytest.raises(ImageError, match=message):
            list(list_images([wrong]))


def test_paths_below_a_source_lead_nowhere_else(tree: Path) -> None:
    below = [ref.below for ref in list_images(["photos", "photos/**/b.png"])]
    assert below == ["a.png", "sub/a.png", "sub/b.png", "sub/b.png"]
    (tree / "list.txt").write_text(f"../{tree.name}/c.png\n{tree}/c.png\n")
    first, second = list_images(["list.txt"])
    assert first.below == f"{tree.name}/c.png"
    assert second.below == f"{tree}/c.png".lstrip("/")


def test_lists(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = os.fsencode(tree / "photos") + b"/caf\xe9 \xe7.png"
    os.link(tree / "c.png", odd)
    content = b"c.png\r\n\nshard.tar\n" + odd + b"\ngone.png"
    (tree / "list.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    for source in ("list.txt", "-"):
        refs = list(list_images([source]))
        assert [ref.name for ref in refs] == ["c.png", *names("shard.tar"), os.fsdecode(odd), "gone.png"]
        assert colour(refs[-2]) == 3
        with pytest.raises(ImageError, match=r"gone\.png"):
            refs[-1].read()


@pytest.mark.usefixtures("tree")
def test_parts_hold_every_image_once() -> None:
    sources = ("photos", "c.png", "shard.tar")
    parted = [ref.name for i in range(3) for ref in list_images(sources, Shard(i, 3))]
    assert sorted(parted) == sorted(names(*sources))
    assert Shard.parse("2/8") == Shard(2, 8)
    for text in ("8/8", "1", "a/2", "-1/2", "0/0", "1/2/3", ""):
        with pytest.raises(OptionError, match="--shard takes I/N"):
            Shard.parse(text)


def test_missing_sources_are_named_before_the_first_image(tree: Path) -> None:
    (tree / "empty").mkdir()
    for source, message in (("gone", "no such file"), ("empty", "no images in the folder"), ("*.x", "matches nothing")):
        with pytest.raises(ImageError, match=message):
            list_images(["photos", source])


@pytest.mark.parametrize("archive", ["cut.tar", "cut.tar.gz"])
def test_a_damaged_archive_ends_nothing_else(archive: str, tree: Path) -> None:
    whole = (tree / archive.replace("cut", "shard")).read_bytes()
    length = 1536 if archive == "cut.tar" else len(whole) // 2
    (tree / archive).write_bytes(whole[:length] + b"\0" * 20 + b"damage" * 99)
    *_, damaged, last = list_images([archive, "c.png"])
    assert damaged.name == archive
    with pytest.raises(ImageError, match=f"{archive}: cannot read the"):
        damaged.read()
    assert colour(last) == 3


def test_nothing_is_listed_before_it_is_wanted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        (tree / "photos" / f"{i:02d}").mkdir()
        (tree / "photos" / f"{i:02d}" / "x.png").touch()
    scanned: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scanned.append(path), scan(path))[1])
    listing = list_images(["photos"])
    assert next(listing).name == "photos/00/x.png"
    assert len(scanned) == 2
