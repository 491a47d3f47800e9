"""Images in stores that pyarrow reads: ``s3://…``, ``gs://…``, ``file:///…``."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import IO, Any

from vmamba.data.shard_files import reason_of
from vmamba.errors import ImageError, MissingPackageError


def list_store(url: str, endings: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Addresses of the images at or below an address, each with its path below it, sorted.

    Args:
        url: Of an object, or of what several begin with.
        endings: Of images, in lower case.

    Raises:
        ImageError: If there are none, or the store cannot be used.
        MissingPackageError: If pyarrow is not installed.
    """
    system, path = _file_system(url)
    from pyarrow.fs import FileSelector, FileType

    prefix = url.removesuffix("/").removesuffix(path.removesuffix("/"))
    empty = True
    try:
        (info,) = system.get_file_info([path])
        below = FileSelector(path, recursive=True, allow_not_found=True)
        files = [info] if info.type == FileType.File else system.get_file_info(below)
    except Exception as error:  # stores raise nearly anything
        raise ImageError(f"{url}: cannot be listed: {reason_of(error)}") from None
    for file in sorted(files, key=lambda file: str(file.path)):
        if file.type == FileType.File and os.path.splitext(file.path)[1].lower() in endings:
            empty = False
            yield f"{prefix}{file.path}", file.path.removeprefix(path).lstrip("/") or os.path.basename(path)
    if empty:
        raise ImageError(f"no images at {url}: check the address")


def open_object(url: str) -> IO[bytes]:
    """The content of an object in a store.

    Raises:
        ImageError: If it cannot be read.
    """
    system, path = _file_system(url)
    try:
        with system.open_input_stream(path) as stream:
            return io.BytesIO(stream.read())
    except Exception as error:  # stores raise nearly anything
        raise ImageError(f"cannot read the image {url}: {reason_of(error)}") from None


@lru_cache(maxsize=1)
def _last_system(start: str) -> Any:
    """The file system of a store; opening one takes long."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(start)[0]


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path on it."""
    try:
        import pyarrow.fs
    except ImportError:
        raise MissingPackageError("pyarrow", "parquet") from None
    scheme, _, rest = url.partition("://")
    store, _, key = rest.partition("/")
    try:
        system = _last_system(f"{scheme}://{store}/")
    except (ValueError, OSError, pyarrow.lib.ArrowException) as error:
        raise ImageError(f"{url}: no store that pyarrow reads: {reason_of(error)}") from None
    return system, f"{store}/{key}" if store else f"/{key}"
