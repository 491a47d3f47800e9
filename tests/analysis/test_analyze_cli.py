"""``vmamba analyze``: every analysis leaves a table and a picture, and says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmamba.analysis.tables import read_csv
from vmamba.cli import main


def analyze(capsys: pytest.CaptureFixture[str], output: Path, *arguments: object) -> list[Path]:
    """The files that an analysis says it wrote, all of them there."""
    assert main(["analyze", *map(str, arguments), "--output", str(output)]) == 0
    out = capsys.readouterr().out
    listed = out[out.rindex("wrote ") + len("wrote ") :]
    paths = [Path(name.strip()) for name in listed.split(", ")]
    assert {path.suffix for path in paths} >= {".png", ".svg"}
    for path in paths:
        assert path.stat().st_size > 100, path
    return paths


def test_cost(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    analyze(capsys, tmp_path, "cost", "vmamba_pico", "resnet18", "--image-size", "64x96", "--depth", 1)
    rows = read_csv(tmp_path / "cost.csv")
    assert [row["model"] for row in rows if not row["layer"]] == ["vmamba_pico", "resnet18"]
    assert sum(int(row["macs"]) for row in rows if row["layer"] in ("stem", "stages", "norm", "head")) == int(
        rows[0]["macs"]
    )


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "cost", "resnet5"]) == 2
    assert capsys.readouterr().err == "vmamba: error: unknown model 'resnet5'; do you mean 'resnet50'?\n"
