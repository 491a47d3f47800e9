"""How a summary of a data set looks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vmamba.data.summary import DataSummary, SplitSummary


def rendered(*parts: SplitSummary, max_classes: int | None = 20) -> str:
    console = Console(file=io.StringIO(), width=100, markup=False, emoji=False, highlight=False)
    DataSummary("classification", "photos", parts, ["a remark"]).show(console, max_classes)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_names_are_shown_as_they_are() -> None:
    text = rendered(SplitSummary("train", "photos/[red]", 3, {"[unk] thing": 2, ":dog:": 1, "a\nb": 0}))
    for shown in ("train: photos/[red]", "[unk] thing", ":dog:", r"a\nb", r"no images of 'a\nb'", "a remark"):
        assert shown in text


@pytest.mark.parametrize(("limit", "rows"), [(None, 30), (30, 30), (10, 9)])
def test_many_classes_are_summed_up(limit: int | None, rows: int) -> None:
    counts = {f"class {i:02d}": i for i in range(30)}
    lines = rendered(SplitSummary("train", "photos", 435, counts), max_classes=limit).splitlines()
    assert sum("class 0" in line or "class 1" in line or "class 2" in line for line in lines) >= rows
    more = [line for line in lines if "more classes" in line]
    assert len(more) == (rows < 30)
    assert all("21 more classes" in line and str(sum(range(9, 30))) in line for line in more)


def test_pixels_are_shares() -> None:
    text = rendered(SplitSummary("val", "scenes", 2, {"sky": 750, "sea": 250}, "pixels", {"broken maps": 1, "none": 0}))
    assert "75.00% of the pixels" in text
    assert "val: left out 1 broken maps\n" in text


def test_missing_classes_are_named_but_not_all() -> None:
    (line,) = DataSummary("x", "x", [SplitSummary("val", "x", 1, {f"c{i}": i // 7 for i in range(8)})]).remarks()
    assert line == "val: no images of 'c0', 'c1', 'c2', 'c3', 'c4' and 2 more"


def test_paths_are_left_whole() -> None:
    """A log is narrower than many paths are long."""
    path = "/data/" + "a folder/" * 30
    lines = rendered(SplitSummary("train", path, 1, unreadable=[f"{path}x.png: broken"])).splitlines()
    assert f"train: {path}" in lines
    assert f"  {path}x.png: broken" in lines
