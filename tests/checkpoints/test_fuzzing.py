"""Two hundred damaged and hostile files: each is loaded rightly or refused in one line, within its memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from support import checkpoint_fuzzing


@pytest.mark.slow
def test_two_hundred_files(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(200):
        path = checkpoint_fuzzing.write(seed, tmp_path)
        try:
            outcomes[checkpoint_fuzzing.outcome(path)] += 1
        except Exception as error:
            raise AssertionError(f"checkpoint number {seed}") from error
    assert outcomes["refused"] > 100, outcomes  # the damage is of the kind that matters
    assert outcomes["loaded"] > 5, outcomes


def test_numbers_give_files(tmp_path: Path) -> None:
    once = [checkpoint_fuzzing.write(seed, tmp_path).read_bytes() for seed in range(8)]
    assert once == [checkpoint_fuzzing.write(seed, tmp_path).read_bytes() for seed in range(8)]
    assert len(set(once)) > 4
