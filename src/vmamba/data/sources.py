"""Images to work through, listed while they are worked through: files, folders, patterns, archives, lists.

A listing holds one folder's entries, or the matches of one pattern, at a time; ten million images are no more than ten.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from vmamba.data.images import expand, image_endings, read_image
from vmamba.data.shard_files import reason_of
from vmamba.data.stores import list_store, open_object
from vmamba.data.tar import Place, StrictTarInfo, iter_tar, open_member
from vmamba.data.walk import is_hidden
from vmamba.errors import DataError, ImageError, MissingPackageError, OptionError
from vmamba.files import require_file

#: Endings of files that list images, and of archives; compressed ones are read from their start to their end.
LISTS, ARCHIVE, COMPRESSED = (".txt", ".lst"), ".tar", (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
STDIN = "-"


class ImageRef(NamedTuple):
    """An image, not read yet.

    Attributes:
        name: Its identity: the path, or ``ARCHIVE:MEMBER``.
        below: Path below its source, without ``..``, for files named after it.
        path: The file, or the archive.
        place: Within an archive.
        content: Where it was read with its archive.
        problem: Reason for which there is no such image: an archive is damaged here.
    """

    name: str
    below: str
    path: str
    place: Place | None = None
    content: bytes | None = None
    problem: str = ""

    def read(self, max_pixels: int | None = None) -> Image.Image:
        """The image, RGB; see `vmamba.data.images.read_image`.

        Raises:
            ImageError: If it cannot be read.
        """
        if self.problem:
            raise ImageError(self.problem)
        content: IO[bytes] | None = None
        if self.content is not None:
            content = io.BytesIO(self.content)
        elif self.place is not None:
            content = open_member(self.path, self.place)
        elif _is_address(self.path):
            content = open_object(self.path)
        return read_image(self.name, content, max_pixels=max_pixels)


@dataclass(frozen=True)
class Shard:
    """Number `index` of `count` parts of all images, from 0: those whose name's CRC-32 modulo `count` is `index`.

    An archive at an address is read as a whole by one part.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``I/N``, with I from 0 to N - 1.

        Raises:
            OptionError: For anything else.
        """
        index, slash, count = text.partition("/")
        if not slash or not (index + count).isdecimal() or not int(index) < int(count):
            raise OptionError(f"--shard takes I/N with I from 0 to N - 1, such as 0/8, got {text!r}")
        return cls(int(index), int(count))

    def holds(self, name: str) -> bool:
        """True if an image or archive of that name is in this part."""
        return zlib.crc32(os.fsencode(name)) % self.count == self.index


#: Everything.
WHOLE = Shard(0, 1)


def list_images(sources: Sequence[str | Path], shard: Shard = WHOLE) -> Iterator[ImageRef]:
    """The images that `sources` mean, one by one, in their order; an image named twice comes twice.

    Args:
        sources: Any mix of image files, folders, patterns (see `vmamba.data.images.find_images`), archives ``.tar``
            with images in them (WebDataset's shards are some), lists ``.txt`` of files and archives, one a line, and
            ``-`` for such a list on the standard input. Archives may be compressed, or lie at an address that
            webdataset opens (``https://…/{000..099}.tar``, ``pipe:…``); images may lie in a store that pyarrow reads
            (``s3://bucket/folder``, ``gs://…``).
        shard: Part of them.

    Raises:
        ImageError: For a missing source, or a folder or pattern without images, before the first image.
        OSError: If a folder or list cannot be read.
    """
    begun = []
    for source in map(str, sources):
        listing = _source(source, shard)
        if source != STDIN and not _is_address(source) and not os.path.isfile(source):
            listing = chain(list(islice(listing, 1)), listing)
        begun.append(listing)
    return chain.from_iterable(begun)


def _source(source: str, shard: Shard) -> Iterator[ImageRef]:
    ending = os.path.splitext(source)[1].lower()
    if source == STDIN:
        yield from _list(sys.stdin.buffer, shard)
    elif _is_stream(source):
        for url in _braces(source):
            if shard.holds(url):
                yield from _streamed(url)
    elif _is_address(source):
        yield from _remote(source, shard)
    elif ending in LISTS and os.path.isfile(source):
        with open(source, "rb") as file:
            yield from _list(file, shard)
    else:
        base = _fixed_part(source)
        archives = frozenset() if os.path.isdir(source) else {ARCHIVE, ".tgz"}
        for path in expand(source, image_endings() | archives):
            yield from _file(path, os.path.relpath(path, base) if base is not None else os.path.basename(path), shard)


def _file(path: str, below: str, shard: Shard) -> Iterator[ImageRef]:
    """An image file, or the images in an archive."""
    path = str(Path(path))
    if path.lower().endswith(COMPRESSED):
        if shard.holds(path):
            yield from _streamed(path)
    elif path.lower().endswith(ARCHIVE):
        yield from _guarded(path, (ref for ref in _members(path) if shard.holds(ref.name)))
    elif shard.holds(path):
        yield ImageRef(path, _safe(below), path)


def _list(lines: Iterable[bytes], shard: Shard) -> Iterator[ImageRef]:
    for line in lines:
        if path := os.fsdecode(line.rstrip(b"\r\n")):
            if _is_stream(path):
                yield from _source(path, shard)
            elif _is_address(path):
                if shard.holds(path):
                    yield ImageRef(path, _safe(path.partition("://")[2]), path)
            else:
                yield from _file(path, path, shard)


def _members(path: str) -> Iterator[ImageRef]:
    endings = image_endings()
    for name, place in iter_tar(path, Counter()):
        if os.path.splitext(name)[1].lower() in endings:
            yield ImageRef(f"{path}:{name}", _safe(f"{_stem(path)}/{name}"), path, place)


def _streamed(url: str) -> Iterator[ImageRef]:
    """Images in an archive that is read from its start to its end."""
    endings = image_endings()

    def read() -> Iterator[ImageRef]:
        try:
            if os.path.exists(url):
                require_file(url)
                stream = open(url, "rb")  # noqa: SIM115
            else:
                from webdataset import gopen

                stream = gopen(url)
            with stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has read
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is None or any(map(is_hidden, member.name.removeprefix("./").split("/"))):
                        continue
                    if os.path.splitext(member.name)[1].lower() not in endings:
                        continue
                    data = content.read()
                    if len(data) < member.size:
                        raise DataError("unexpected end of data")
                    name = f"{url}:{member.name}"
                    yield ImageRef(name, _safe(f"{_stem(url)}/{member.name}"), url, content=data)
        except ImportError:
            raise MissingPackageError("webdataset", "train") from None
        except Exception as error:  # tarfile and openers of addresses raise nearly anything
            raise DataError(f"{url}: cannot read the shard: {reason_of(error)}") from error

    return _guarded(url, read())


def _guarded(path: str, images: Iterator[ImageRef]) -> Iterator[ImageRef]:
    """The images, followed by the fault that ends them: one archive ends nothing else."""
    try:
        yield from images
    except DataError as error:
        yield ImageRef(path, _stem(path), path, problem=str(error))


def _remote(url: str, shard: Shard) -> Iterator[ImageRef]:
    """Images in a store: the object itself, or what lies below it."""
    for name, below in list_store(url, image_endings()):
        if shard.holds(name):
            yield ImageRef(name, _safe(below), name)


def _is_address(source: str) -> bool:
    return "://" in source or source.startswith("pipe:")


def _is_stream(source: str) -> bool:
    """True for an archive at an address."""
    return _is_address(source) and (
        source.startswith(("http:", "https:", "pipe:")) or source.lower().endswith((ARCHIVE, *COMPRESSED))
    )


def _braces(url: str) -> list[str]:
    if "{" not in url or url.startswith("pipe:"):
        return [url]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise MissingPackageError("webdataset", "train") from None
    return list(braceexpand(url))


def _fixed_part(source: str) -> str | None:
    """The folder that a source's files lie below: itself, or what precedes the first magic part of a pattern."""
    if os.path.isdir(source):
        return source
    if os.path.lexists(source):
        return None
    parts = Path(source).parts
    fixed = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    return str(Path(*parts[:fixed])) if fixed else "."


def _stem(path: str) -> str:
    return os.path.basename(path).partition(".")[0] or "archive"


def _safe(name: str) -> str:
    """A relative path without ``..`` and drives."""
    return "/".join(part for part in os.path.splitdrive(name)[1].split("/") if part not in ("", ".", "..")) or "image"
