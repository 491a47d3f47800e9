"""Text for terminals: names and labels from outside are data, never line breaks, escape codes or markup."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Control characters, line and paragraph separators, marks that change the direction of writing, and the surrogates
# that stand for bytes which are not UTF-8. Joiners (U+200C, U+200D) belong to the spelling of many languages.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")

_BLOCKS = "▁▂▃▄▅▆▇█"


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


def sparkline(values: Sequence[float], stream: TextIO, length: int = 16) -> str:
    """The course of values in block characters, from the lowest to the highest: ``"█▆▃▂▁▁"``.

    Args:
        values: In the order of time; those that are not finite are left out.
        stream: Where it will be printed; nothing is drawn that it cannot show.
        length: Characters at most; of more values, means are shown.

    Returns:
        The characters; none for fewer than two values.
    """
    known = [value for value in values if isfinite(value)]
    if len(known) < 2 or not is_utf8(stream):
        return ""
    count = min(len(known), length)
    edges = [i * len(known) // count for i in range(count + 1)]
    shown = [fmean(known[start:end]) for start, end in pairwise(edges)]
    low, high = min(shown), max(shown)
    scale = (len(_BLOCKS) - 1) / ((high - low) or 1)
    return "".join(_BLOCKS[round((value - low) * scale)] for value in shown)


def is_utf8(stream: TextIO) -> bool:
    """True where every character can be printed; so it is taken where a stream does not say."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: no markup, no emoji codes, no highlighting.

    Args:
        stderr: Print on the error stream.
    """
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
