"""What a terminal is given: one line, without effects."""

from __future__ import annotations

import io
import unicodedata

import pytest
from rich.table import Table
from rich.text import Text

from vmamba.progress import progress_bar
from vmamba.terminal import console, printable, sparkline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photo[red].png", "photo[red].png"),
        ("Ångström 猫 می‌خواهم 👩‍🔬 क्ष.png", "Ångström 猫 می‌خواهم 👩‍🔬 क्ष.png"),
        ("two\nlines\r.png", r"two\nlines\r.png"),
        ("\x1b[2Jgone.png", r"\x1b[2Jgone.png"),
        ("\x9b31mred", r"\x9b31mred"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("caf\udce9.png", r"caf\udce9.png"),
        ("a\u2028b\u0085c", r"a\u2028b\x85c"),
    ],
)
def test_printable(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_nothing_that_moves_the_cursor_or_cannot_be_encoded_is_left() -> None:
    everything = printable("".join(map(chr, range(0x11000))))
    everything.encode()
    assert len(everything.splitlines()) == 1
    kinds = {c: unicodedata.category(c) for c in everything}
    assert not [c for c, kind in kinds.items() if kind in ("Cc", "Cs", "Zl", "Zp")]
    assert not [c for c in everything if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI")]


def test_tables_and_bars_read_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "[red]x[/y] :warning: [/]"
    out = console()
    out.file, out.width = io.StringIO(), 100
    table = Table("image")
    table.add_row(name)
    out.print(table)
    assert name in out.file.getvalue()
    bar = progress_bar("images")
    task = bar.add_task(f"{name}\n")
    (described, *_) = bar.get_renderables()
    assert task == 0
    (cell,) = list(described.columns[0].cells)
    assert isinstance(cell, Text)
    assert cell.plain == name + r"\n"


def test_sparklines() -> None:
    utf8, ascii_only = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "ascii")
    assert sparkline(range(8), utf8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, float("nan"), 1, 2], utf8) == "█▁▅"
    assert sparkline(range(1600), utf8, 16) == sparkline(range(16), utf8)  # means of hundreds
    assert sparkline([5, 5, 5], utf8) == "▁▁▁"
    assert sparkline([1], utf8) == sparkline([1, 2], ascii_only) == ""
