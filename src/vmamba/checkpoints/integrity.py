"""Damage in checkpoint files, found without reading weights from them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from vmamba.checkpoints.reading import read_safetensors
from vmamba.checkpoints.stored import SourceFile


def damage(path: Path, suffix: str, *, every_byte: bool = False) -> str:
    """Reason why a file is not whole; empty if it is, or if its kind is not known.

    Args:
        path: The file.
        suffix: Of its final name: ``.safetensors``, ``.pth``, ``.pt`` or ``.ckpt``.
        every_byte: Verify the checksums of a zip archive.
    """
    if suffix == ".safetensors":
        return _damage_of_safetensors(path)
    if suffix in (".pth", ".pt", ".ckpt"):
        with path.open("rb") as file:
            start = file.read(2)
        if start == b"PK":
            return _damage_of_zip(path, every_byte)
        if start[:1] != b"\x80":  # that of a pickle, the format before PyTorch 1.6, without checksums
            return f"it is not a PyTorch checkpoint, it begins with {start!r}"
    return ""


def _damage_of_safetensors(path: Path) -> str:
    try:
        read_safetensors(SourceFile(path))
    except ValueError as error:
        return _one_line(error)
    return ""


def _damage_of_zip(path: Path, every_byte: bool) -> str:
    try:
        with zipfile.ZipFile(path) as archive:  # finds the table at the end of the file
            bad = archive.testzip() if every_byte else None
    except Exception as error:  # zipfile raises nearly anything on a broken archive, even OSError
        return _one_line(error)
    return f"the checksum of its entry {bad} is wrong" if bad else ""


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
