"""Text for terminals: names and labels from outside are data, never line breaks, escape codes or markup."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Control characters, line and paragraph separators, marks that change the direction of writing, and the surrogates
# that stand for bytes which are not UTF-8. Joiners (U+200C, U+200D) belong to the spelling of many languages.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def printable(text: object) -> str:
    r"""One line, with unsafe characters escaped: a line break as ``\n``, a byte that is not UTF-8 as ``\udcff``."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))


def escaped_json(value: Any, *, ascii_only: bool = False) -> str:
    """JSON on one line that a terminal shows as it stands, and that any parser reads.

    Args:
        value: What `json.dumps` takes.
        ascii_only: Escape every character beyond ASCII.
    """
    text = json.dumps(value, ensure_ascii=ascii_only)
    return _UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: no markup, no emoji codes, no highlighting.

    Args:
        stderr: Print on the error stream.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
