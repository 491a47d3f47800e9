"""Errors in one line: what a person can do something about, and what is a bug."""

from __future__ import annotations

import errno
import re

from vmamba.errors import VMambaError

_OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
_REMEDIES = {
    errno.ENOSPC: "make room on the disk, or choose another place for the output",
    errno.EDQUOT: "make room in your quota, or choose another place for the output",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a file or folder that you have access to",
    errno.EPERM: "choose a file or folder that you have access to",
    errno.ENOENT: "check the spelling and the current folder",
}


def explain(error: Exception) -> str | None:
    """The error in one line, or None for a bug."""
    if isinstance(error, VMambaError):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return "not enough memory; take smaller images, fewer at once, or a machine with more"
    if isinstance(error, OSError):
        remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}{remedy}"
    return None
