"""Broken inputs with a fixed seed: each ends in one line, or is read rightly. `benchmarks/fuzz.py` tries many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fuzzing_data import KINDS, generator


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("coco", 500), ("image", 500), ("label_map", 500), ("tar", 200), ("shard", 200), ("configuration", 300),
        ("run", 150),
    ],
)  # fmt: skip
def test_broken_inputs(kind: str, count: int, tmp_path: Path) -> None:
    fuzzer = KINDS[kind](tmp_path / kind)
    refused = sum(fuzzer.run(generator(kind, 0, number)) for number in range(count))
    assert count / 20 < refused < count  # some of both, else the fuzzer tries nothing
