"""Files within an uncompressed tar file, each at its place, so that any number of processes reads them at once."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import IO, NamedTuple

from typing_extensions import Self

from vmamba.data.walk import HIDDEN, is_hidden
from vmamba.errors import DataError, system_reason
from vmamba.files import require_file

_NO_FILE = "archive members that are no ordinary files"


class Place(NamedTuple):
    """First byte and number of bytes of a file within an archive."""

    start: int
    size: int


class StrictTarInfo(tarfile.TarInfo):
    """Members of which a damaged or truncated header is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if any(buf):
                raise tarfile.ReadError("a member is damaged") from None
            raise  # nothing, or the block of zeros that is the end


def list_tar(path: str, left_out: Counter[str]) -> dict[str, Place]:
    """The files in an archive, those in archives within it included: name → place.

    An archive ``cat.tar`` within stands for a folder ``cat``, as in ImageNet's. A folder around everything that is
    named as the archive is taken away. Hidden entries are left out as `vmamba.data.walk.walk` does.

    Args:
        path: The archive.
        left_out: Gets the number of entries left out for each reason.

    Raises:
        DataError: If it is compressed, damaged, or no tar file.
    """
    files: dict[str, Place] = {}
    for name, place in iter_tar(path, left_out, files):
        files[name] = place
    own = os.path.splitext(os.path.basename(path))[0] + "/"
    if files and all(name.startswith(own) for name in files):
        files = {name.removeprefix(own): place for name, place in files.items()}
    return files


def iter_tar(
    path: str, left_out: Counter[str], earlier: Mapping[str, Place] = MappingProxyType({})
) -> Iterator[tuple[str, Place]]:
    """The files in an archive, one by one as they are read; see `list_tar`.

    Args:
        path: The archive.
        left_out: Gets the number of entries left out for each reason.
        earlier: Files that hard links are resolved by; a link to any other is left out.

    Raises:
        DataError: If it is compressed, damaged, or no tar file.
    """
    try:
        require_file(path)
        with open(path, "rb") as file:
            yield from _members(file, 0, os.path.getsize(path), "", left_out, earlier)
    except OSError as error:
        raise DataError(f"{path}: cannot read the tar file: {system_reason(error)}") from None
    except Exception as error:  # tarfile raises nearly anything on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot read the tar file; is it damaged or compressed? ({reason})") from None


def open_member(path: str, place: Place) -> IO[bytes]:
    """The content of a file within an archive.

    Raises:
        OSError: If the archive cannot be read.
    """
    with open(path, "rb") as file:
        file.seek(place.start)
        return io.BytesIO(file.read(place.size))


def _members(
    file: IO[bytes], start: int, size: int, folder: str, left_out: Counter[str], earlier: Mapping[str, Place]
) -> Iterator[tuple[str, Place]]:
    """The files of an archive that begins at `start` of the outermost one, below `folder`."""
    with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has read
            if member.size < 0 or member.offset_data + member.size > size:
                raise DataError("unexpected end of data")
            name = folder + "/".join(_parts(member.name))
            if member.isdir():
                continue
            if any(map(is_hidden, _parts(member.name))):
                left_out[HIDDEN] += 1
            elif member.islnk() and (target := folder + "/".join(_parts(member.linkname))) in earlier:
                yield name, earlier[target]
            elif not member.isreg() or member.issparse():
                left_out[_NO_FILE] += 1
            elif name.lower().endswith(".tar"):
                inner = archive.extractfile(member)
                assert inner is not None
                yield from _members(inner, start + member.offset_data, member.size, f"{name[:-4]}/", left_out, earlier)
            else:
                yield name, Place(start + member.offset_data, member.size)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]
