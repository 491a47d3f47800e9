"""Files that are written whole or not at all, outputs that replace no input, and locks."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from vmamba.errors import OptionError

#: Prefix of files that are not whole yet; `remove_leftovers` finds them by it.
_TEMPORARY = ".writing-"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes its name only when the ``with`` block ends without an error.

    Missing parent folders are created. The file gets the permissions of an ordinary new file, and is on the disk when
    the block has ended.

    Raises:
        OSError: If it cannot be written; what was at `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{_TEMPORARY}{path.name[:32]}.")
    try:
        with name_in_errors(path), os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's own are the owner's alone
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename, error.filename2 = os.fspath(path), None
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def require_file(path: str | Path) -> None:
    """Refuse what is no file before it is opened: a pipe would wait for a writer, a device may never end.

    Raises:
        OSError: If there is nothing, or a folder, pipe, socket or device.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a file", os.fspath(path))


@contextmanager
def name_in_errors(path: str | Path) -> Iterator[None]:
    """Let an error of the system that names no file, as those of writing to an open one, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def remove_leftovers(folder: str | Path, *, recursive: bool = True) -> None:
    """Remove what writers that were killed have left in `folder`, and below unless it is not `recursive`."""
    for leftover in Path(folder).glob(f"{'**/' if recursive else ''}{_TEMPORARY}*"):
        with suppress(OSError):
            leftover.unlink()


def refuse_overwriting(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Check, before anything is written, that no output is an input.

    Raises:
        OptionError: If one is, under whatever name or link. Names that differ in case alone are one file on many
            systems, so they count as the same on all.
    """
    names = {os.path.realpath(path).casefold() for path in inputs}
    files = {identity for path in inputs if (identity := _identity(path))}
    for output in outputs:
        if os.path.realpath(output).casefold() in names or _identity(output) in files:
            raise OptionError(f"{output} would be written over an input; choose another place for the output")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file, the same under all its names, or None where there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextmanager
def lock(path: str | Path, message: str, timeout: float = 0) -> Iterator[None]:
    """Hold a lock file, and remove it at the end; the system frees that of a process that dies.

    Args:
        path: The lock file, created with its folder.
        message: Of the error if another process holds it.
        timeout: Seconds to wait for it; negative to wait for ever.

    Raises:
        OptionError: If another process holds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        raise OptionError(message) from None
    try:
        yield
    finally:
        # Removed while it is held: whoever waits for it notices that its file is gone, and makes another.
        with suppress(OSError):
            path.unlink()
        held.release()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a new name durable, where the system can open folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
