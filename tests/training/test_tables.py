"""Tables that were cut off or damaged: what is whole is kept, what is not is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmamba.training.tables import Table, read_table

ROWS = [{"step": step, "epoch": step / 4, "loss": 1 / step} for step in range(1, 6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table = Table(tmp_path / "steps.csv")
    for row in ROWS:
        table.add(row)
    return table.path


def steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in read_table(path)[0]]


def test_rows_after_the_checkpoint_are_dropped(path: Path) -> None:
    table = Table(path, step=3)
    assert table.problem is None
    assert steps(path) == [1, 2, 3]
    table.add({"step": 4, "epoch": 1, "loss": 0.5})
    assert steps(path) == [1, 2, 3, 4]
    assert float(read_table(path)[0][-1]["loss"]) == 0.5
    assert steps(Table(path).path) == []


def test_last_row_cut_off(path: Path) -> None:
    """Killed while writing: no word is needed."""
    path.write_bytes(path.read_bytes()[:-4])
    table = Table(path, step=5)
    assert table.problem is None
    assert steps(path) == [1, 2, 3, 4]
    assert [p.name for p in path.parent.iterdir()] == ["steps.csv"]


@pytest.mark.parametrize(
    ("damage", "lines", "kept"),
    [
        ((b"3,0.75", b"step,epoch"), "line 4", [1, 2, 4, 5]),
        ((b"3,0.75", b"\x00\xff\xfe"), "line 4", [1, 2, 4, 5]),
        ((b"2,0.5,0.5\n3,", b"2,0.5,0.5,9\n,"), "line 3, 4", [1, 4, 5]),
        ((b"step,epoch", b"\x00\x00\x00\x00,epoch"), "line 1", []),
    ],
)
def test_damaged_rows(path: Path, damage: tuple[bytes, bytes], lines: str, kept: list[int]) -> None:
    before = path.read_bytes()
    assert damage[0] in before
    spoilt = before.replace(*damage)
    path.write_bytes(spoilt)
    table = Table(path, step=5)
    assert table.problem is not None
    assert f"{path}: left out damaged rows ({lines})" in table.problem
    assert steps(path) == kept
    assert path.with_name("steps.csv.damaged").read_bytes() == spoilt
    table.add({"step": 6, "epoch": 1.5, "loss": 0.1})
    assert steps(path) == [*kept, 6]
    assert Table(path, step=6).problem is None
