"""A report as one HTML file: numbers, pictures and tables, without anything from elsewhere."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vmamba.files import atomic_write
from vmamba.terminal import printable

#: Larger tables are files to be opened by other programs.
_COLUMNS, _ROWS = 8, 500

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .25rem .75rem; border-bottom: 1px solid #8885; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
img {{ max-width: 100%; height: auto; background: white; }}
figure {{ margin: 1rem 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(
    path: Path,
    title: str,
    results: Sequence[Mapping[str, str]],
    pictures: Mapping[str, Path],
    tables: Mapping[str, Path],
) -> Path:
    """Write a page.

    Args:
        path: The file, ``.html``.
        title: Its heading.
        results: Rows of the first table, all with the same names.
        pictures: PNG files by what they show.
        tables: CSV files by what they hold; those of many rows or columns are named, not shown.

    Raises:
        OSError: If a file cannot be read or written.
    """
    if len(results) == 1:
        parts = [_table([["result", "value"], *map(list, results[0].items())])]
    else:
        parts = [_table([list(results[0]), *(list(row.values()) for row in results)])]
    for name, picture in pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        parts.append(f'<figure><h2>{_text(name)}</h2><img alt="{_text(name)}" src="{source}"></figure>')
    for name, file in tables.items():
        with open(file, newline="", encoding="utf-8", errors="surrogateescape") as lines:
            rows = list(csv.reader(lines))
        small = rows and len(rows[0]) <= _COLUMNS and len(rows) <= _ROWS
        parts += [f"<h2>{_text(name)}</h2>", _table(rows) if small else f"<p>In <code>{_text(file.name)}</code>.</p>"]
    page = _PAGE.format(title=_text(title), body="\n".join(parts))
    with atomic_write(path) as out:
        out.write(page.encode())
    return path


def _text(text: str) -> str:
    return escape(printable(text))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row names the columns."""
    head, *body = rows
    lines = [_row("th", head), *(_row("td", row) for row in body)]
    return "\n".join(["<table>", *lines, "</table>"])


def _row(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{_text(cell)}</{kind}>" for cell in cells) + "</tr>"
