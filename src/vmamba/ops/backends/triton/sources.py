"""A stand-in for all kernels in the keys of PyTorch's compilation caches.

A graph in AOTAutograd's cache holds kernels, and how they are launched, as they were when it was traced; its key is
made from the graph before that, in which stands an operator. `marker` is a kernel whose source names a digest of every
file beside this one, so that no graph outlives an edit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import triton


def digest(folder: Path) -> str:
    """SHA-256 of the Python files of a folder, names and contents."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode() + content)
    return total.hexdigest()


SOURCES = digest(Path(__file__).parent)


@triton.jit
def marker():
    """Never launched. The caches' keys hold the globals that a kernel reads."""
    SOURCES  # noqa: B018
