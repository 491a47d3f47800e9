"""Errors in one line: what a person can do something about, and what is a bug."""

from __future__ import annotations

import os
import re

from vmamba.errors import VMambaError, system_reason

_OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


def explain(error: Exception) -> str | None:
    """The error in one line, or None for a bug."""
    if isinstance(error, VMambaError):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return "not enough memory; take smaller images, fewer at once, or a machine with more"
    if isinstance(error, OSError):
        place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
        return f"{place}{system_reason(error)}"
    return None
