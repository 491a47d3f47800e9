"""Rows of results: whole after any kill, and continued from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from vmamba.errors import DataError
from vmamba.results import jsonl, parquet
from vmamba.results.jsonl import JsonLines
from vmamba.results.names import OutputNames
from vmamba.results.parquet import JOURNAL, ParquetParts
from vmamba.results.seen import Seen
from vmamba.results.vectors import Vectors

COLUMNS = {"image": "string", "boxes": [{"x": "float32", "label": "string"}], "error": "string"}


def row(i: int) -> dict[str, Any]:
    return {"image": f"{i}.jpg", "boxes": [{"x": float(i), "label": "猫"}] * (i % 3)}


def test_rows_are_there_at_once_and_a_torn_one_is_cut_off_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "rows.jsonl"
    rows = JsonLines(path)
    for i in range(3):
        rows.add(row(i))
        assert json.loads(path.read_text().splitlines()[-1]) == row(i)
    rows.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        there: list[Any] = []
        rows = JsonLines(path, there.append)
        assert there == [row(i) for i in range(sum(end <= length for end in ends))]
        rows.add(row(9))
        rows.close()
        assert [json.loads(line) for line in path.read_text().splitlines()] == [*there, row(9)]


def test_zeros_of_a_machine_that_lost_its_power_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(row(0)).encode() + b"\n" + bytes(100))
    JsonLines(path).close()
    assert path.read_text().count("\n") == 1


@pytest.mark.parametrize("line", ["[1]", "no JSON", '{"name": 1}', '{"image": 1}', ""])
def test_other_files_are_left_alone(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    content = f"{json.dumps(row(0))}\n{line}\n{json.dumps(row(1))}\n"
    path.write_text(content)
    with pytest.raises(DataError, match="line 2 is no row of results"):
        JsonLines(path)
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["a note of one line", "a note\n", '{"name": 1}\n', "[1]", '{"image": 1}\n{"name'])
def test_the_last_line_of_other_files_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="is no row of results"):
        JsonLines(path)
    assert path.read_text() == content


def test_rows_are_put_on_the_disk_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(jsonl.os, "fsync", lambda _: synced.append(1))
    monkeypatch.setattr(jsonl, "SYNC_SECONDS", 1e9)
    rows = JsonLines(tmp_path / "rows.jsonl")
    rows.add(row(0))
    assert not synced
    monkeypatch.setattr(jsonl, "SYNC_SECONDS", 0.0)
    rows.add(row(1))
    assert len(synced) == 1
    rows.close()


def parts(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).to_pylist() if any(folder.glob("*.parquet")) else []


def test_parquet_parts_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "PART_ROWS", 4)
    folder = tmp_path / "rows.parquet"
    rows = ParquetParts(folder, COLUMNS, lambda _: None)
    for i in range(10):
        rows.add(row(i))
    rows.add({"image": "bad.jpg", "error": "broken"})
    rows.close()
    assert len(list(folder.iterdir())) == 3
    failed = {"image": "bad.jpg", "boxes": None, "error": "broken"}
    assert parts(folder) == [*(row(i) | {"error": None} for i in range(10)), failed]
    there: list[Any] = []
    ParquetParts(folder, COLUMNS, there.append).close()
    assert [r["image"] for r in there] == [*(f"{i}.jpg" for i in range(10)), "bad.jpg"]
    assert there[-1]["error"] == "broken"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["collecting", "part written", "journal gone"])
def test_parquet_after_a_kill(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is there once, whether the writer ends before, amidst or after the change from journal to part."""
    monkeypatch.setattr(parquet, "PART_ROWS", 4)
    folder = tmp_path / "rows.parquet"
    rows = ParquetParts(folder, COLUMNS, lambda _: None)

    def die() -> None:
        if moment == "journal gone":
            (folder / JOURNAL).unlink()
        raise Killed

    if moment != "collecting":
        monkeypatch.setattr(rows, "_empty_journal", die)
    for i in range(6 if moment == "collecting" else 3):
        rows.add(row(i))
    if moment != "collecting":
        with pytest.raises(Killed):
            rows.add(row(3))
    rows._journal._file.close()
    there: list[Any] = []
    rows = ParquetParts(folder, COLUMNS, there.append)
    done = [r["image"] for r in there]
    assert done == [f"{i}.jpg" for i in range(6 if moment == "collecting" else 4)]
    for i in range(len(done), 9):
        rows.add(row(i))
    rows.close()
    assert parts(folder) == [row(i) | {"error": None} for i in range(9)]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    (folder / "part-000000.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"part-000000\.parquet: cannot be read"):
        ParquetParts(folder, COLUMNS, lambda _: None)


def test_vectors_are_those_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)

    def write(numbers: range) -> None:
        vectors = Vectors(path, "embedding", lambda _: None)
        for i in numbers:
            vectors.add({"image": f"{i}.jpg", "embedding": values[i].tolist()})
        vectors.add({"image": f"bad{numbers[-1]}.jpg", "error": "broken"})
        vectors.close()

    write(range(3))
    assert np.array_equal(np.load(path), values[:3])
    with path.open("ab") as file:
        file.write(b"torn")  # a vector whose row was not written
    write(range(3, 5))
    assert np.array_equal(np.load(path, mmap_mode="r"), values)
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [r.get("index") for r in rows] == [0, 1, 2, None, 3, 4, None]
    os.truncate(path, 200)
    with pytest.raises(DataError, match="has fewer vectors than"):
        write(range(5))


def test_other_vectors_and_other_rows_are_left_alone(tmp_path: Path) -> None:
    vectors, lines = tmp_path / "vectors.npy", tmp_path / "vectors.jsonl"
    np.save(vectors, np.arange(3))
    with pytest.raises(DataError, match=r"has no vectors\.jsonl beside it"):
        Vectors(vectors, "embedding", lambda _: None)
    assert np.array_equal(np.load(vectors), np.arange(3))
    assert not lines.exists()
    vectors.unlink()
    lines.write_text(content := json.dumps(row(0)) + "\n")
    with pytest.raises(DataError, match="holds other rows than those of vectors"):
        Vectors(vectors, "embedding", lambda _: None)
    assert lines.read_text() == content
    assert not vectors.exists()


def test_names_that_have_been_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.results.seen._RECENT", 10)
    seen, truth = Seen(), set[str]()
    draw = np.random.default_rng(0)
    for number in draw.integers(0, 120, 400):
        name = f"{number}\udcff"
        assert (name in seen) == (name in truth)
        assert seen.add(name) == (name not in truth)
        truth.add(name)
        assert len(seen) == len(truth)


def test_no_two_images_have_results_of_one_name(tmp_path: Path) -> None:
    names = OutputNames(tmp_path, (".png", "_labels.png"))
    below = ["a.jpg", "a.png", "A.webp", "a_2.jpg", "x.jpg", "x_labels.jpg", "sub/a.jpg"]
    stems = [str(names.claim(name)[0].relative_to(tmp_path))[:-4] for name in below]
    assert stems == ["a", "a_2", "A_3", "a_2_2", "x", "x_labels_2", "sub/a"]
    later = OutputNames(tmp_path, (".png", "_labels.png"))
    for stem in stems[:2]:
        later.restore(str(tmp_path / f"{stem}.png"))
    assert later.claim("a.gif")[1] == tmp_path / "a_3_labels.png"
