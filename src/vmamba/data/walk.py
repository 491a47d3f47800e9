"""The files below a folder, each once: without hidden entries, with links to folders elsewhere followed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

# What systems and tools leave beside people's files, besides names that begin with a dot; in lower case.
_SYSTEM = {
    "__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "ehthumbs.db", "desktop.ini",
}  # fmt: skip

#: Reasons for which `walk` leaves something out.
HIDDEN = "hidden or system entries"
LINKED_BACK = "links to folders that are part of the data anyway"
BROKEN_LINK = "broken links"
SPECIAL = "pipes, sockets or devices"


def is_hidden(name: str) -> bool:
    """True for the name of a file or folder that no person put there: ``.DS_Store``, ``__MACOSX``, ``Thumbs.db``."""
    return name.startswith(".") or name.lower() in _SYSTEM


def walk(root: str | Path, left_out: Counter[str]) -> Iterator[str]:
    """The files below a folder, relative to it with ``/`` between the parts, in the order of their parts.

    A link to a folder elsewhere is followed, each folder once. A link to a folder within `root`, or to one that
    contains it, is not: that would give the same files twice, or those of another split. One folder's entries are held
    at a time, besides the numbers of the folders seen.

    Args:
        root: The folder; may itself be a link.
        left_out: Gets the number of entries left out for each reason.

    Raises:
        OSError: If a folder cannot be read.
    """
    top = os.path.realpath(root)
    visited = {_identity(top)}
    stack = [("", _entries(top))]
    while stack:
        folder, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        name = f"{folder}{entry.name}"
        if is_hidden(entry.name):
            left_out[HIDDEN] += 1
        elif entry.is_dir():
            linked_back = entry.is_symlink() and _related(os.path.realpath(entry.path), top)
            identity = _identity(entry.path)
            if linked_back or identity in visited:
                left_out[LINKED_BACK] += 1
            else:
                visited.add(identity)
                stack.append((f"{name}/", _entries(entry.path)))
        elif entry.is_file():
            yield name
        else:
            left_out[BROKEN_LINK if entry.is_symlink() and not os.path.exists(entry.path) else SPECIAL] += 1


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def by_ending(names: Iterable[str], endings: frozenset[str], left_out: Counter[str]) -> Iterator[str]:
    """Those of some file names with one of these endings, whatever their case.

    Args:
        names: File names.
        endings: ``.jpg`` …, in lower case.
        left_out: Gets the number of the others for each ending.
    """
    for name in names:
        ending = os.path.splitext(name)[1].lower()
        if ending in endings:
            yield name
        else:
            left_out[f"{ending} files" if ending else "files without an ending"] += 1


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _related(target: str, top: str) -> bool:
    """True if one of two folders is the other or lies in it."""
    try:
        return os.path.commonpath([target, top]) in (target, top)
    except ValueError:  # on different drives
        return False
