"""Names of classes: made fit for tables and files, put into order, read from a list."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from vmamba.errors import DataError, system_reason
from vmamba.files import require_file
from vmamba.terminal import printable


def class_name(text: object) -> str:
    """One printable line, in composed Unicode whatever the file system or file uses."""
    return unicodedata.normalize("NFC", printable(text))


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key: numbers within names by value, the rest without regard to case; ``a2`` before ``A10``."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdecimal() else part for part in parts], name


def number_classes(names: Iterable[str]) -> dict[str, int]:
    """Class names → numbers from 0 on, in natural order."""
    return {name: i for i, name in enumerate(sorted(set(names), key=natural_key))}


def read_class_list(path: Path) -> tuple[str, ...]:
    """The names in a text file, one per line.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        require_file(path)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else "it is not UTF-8 text; save it as UTF-8"
        raise DataError(f"{path}: cannot read the class names: {reason}") from None
    return tuple(class_name(line.strip()) for line in text.split("\n") if line.strip())
