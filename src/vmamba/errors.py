"""Errors that a user can cause. The message is one line: what was wrong, where, and what to do.

Commands print these, and `OSError`, as that line; any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import errno

_REMEDIES = {
    errno.ENOSPC: "make room on the disk, or choose another place for the output",
    errno.EDQUOT: "make room in your quota, or choose another place for the output",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a file or folder that you have access to",
    errno.EPERM: "choose a file or folder that you have access to",
    errno.ENOENT: "check the spelling and the current folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EEXIST: "choose another place for the output",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EISDIR: "name a file, not a folder",
}


def system_reason(error: OSError) -> str:
    """The reason that the system gives, followed by what to do about it where that is known."""
    remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
    return f"{error.strerror or error}{remedy}"


class VMambaError(Exception):
    """Base class of all errors below."""


class OptionError(VMambaError, ValueError):
    """An option, argument or configuration value that is unknown or impossible."""


class DataError(VMambaError, ValueError):
    """A data set that cannot be used: missing, malformed, or inconsistent."""


class ImageError(DataError, OSError):
    """An image, or the place where images should be, that cannot be read."""


class CheckpointError(VMambaError, RuntimeError):
    """A checkpoint that cannot be read or written, is refused, or does not fit the model."""


class DownloadError(VMambaError, RuntimeError):
    """A file that could not be downloaded."""


class ExportError(VMambaError, RuntimeError):
    """A model that cannot be exported, or whose exported form does not agree with PyTorch."""


class TrainingError(VMambaError, RuntimeError):
    """A run that cannot go on: stopped, diverged, or locked by another process."""


class FrozenError(VMambaError, RuntimeError):
    """A model that cannot be frozen, or a change to one that is."""


class ClusterError(VMambaError, RuntimeError):
    """A cluster that cannot be reached, or stopped."""


class MissingPackageError(VMambaError, ImportError):
    """An optional package that is not installed; the message says how to install it.

    Args:
        package: Its name.
        extra: The extra of this package that installs it, where there is one.
    """

    def __init__(self, package: str, extra: str | None = None) -> None:
        wanted = package if extra is None else f"'vmamba[{extra}]'"
        super().__init__(f"{package} is not installed; install it with: pip install {wanted}", name=package)
