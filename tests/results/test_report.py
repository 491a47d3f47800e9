"""The page of an evaluation, read back by a parser."""

from __future__ import annotations

import base64
import csv
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from vmamba.results.report import write_report


class Page(HTMLParser):
    """Rows of cells of every table, headings, and the bytes of pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.pictures: list[bytes] = []
        self.links: list[str] = []
        self._open = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        for name, value in attrs:
            if name in ("src", "href"):
                self.links.append(value or "")
        if tag == "img":
            source = dict(attrs)["src"] or ""
            self.pictures.append(base64.b64decode(source.partition("base64,")[2]))

    def handle_data(self, data: str) -> None:
        if self._open in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self._open in ("h1", "h2"):
            self.headings.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def test_everything_is_inside(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    names = ["<b>bold</b>", "two\nlines", "ü & Ö"]
    for file, rows in (
        ("small.csv", [["class", "images"], *([name, "1"] for name in names)]),
        ("wide.csv", [["x"] * 99]),
    ):
        with open(tmp_path / file, "w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(rows)
    path = write_report(
        tmp_path / "report.html",
        "Evaluation of <model>",
        [{"top-1": "97.5", "images": "360"}],
        {"confusion": tmp_path / "a.png"},
        {"by class": tmp_path / "small.csv", "counts": tmp_path / "wide.csv"},
    )
    page = Page(path)
    assert page.headings == ["Evaluation of <model>", "confusion", "by class", "counts"]
    assert page.tables[0] == [["result", "value"], ["top-1", "97.5"], ["images", "360"]]
    assert page.tables[1] == [["class", "images"], ["<b>bold</b>", "1"], [r"two\nlines", "1"], ["ü & Ö", "1"]]
    assert len(page.tables) == 2
    assert page.pictures == [(tmp_path / "a.png").read_bytes()]
    assert all(link.startswith("data:") for link in page.links)
    assert "wide.csv" in path.read_text(encoding="utf-8")


def test_several_rows(tmp_path: Path) -> None:
    rows = [{"image size": "32", "top-1": "90"}, {"image size": "64", "top-1": "95"}]
    page = Page(write_report(tmp_path / "report.html", "sizes", rows, {}, {}))
    assert page.tables == [[["image size", "top-1"], ["32", "90"], ["64", "95"]]]
