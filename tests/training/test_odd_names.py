"""Names of files and classes that are no UTF-8, or look like markup, cost a run nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.runs import read_rows


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_training_survives_every_name(
    train: Callable[..., int], own_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"blue": os.fsdecode(b"caf\xe9"), "green": "[red] thing", "grey": "two\nlines"}
    for split in ("train", "val"):
        for old, new in names.items():
            (own_images / split / old).rename(own_images / split / new)
        broken = own_images / split / names["blue"] / os.fsdecode(b"\xff[y].png")
        broken.write_bytes(b"no image")
    output = tmp_path / "run"
    assert train(output, "--epochs", 1, "--set", "warmup_epochs=0", data=own_images) == 0
    streams = capsys.readouterr()
    assert "[red] thing" in streams.out + streams.err
    assert len(read_rows(output / "epochs.csv")) == 1
    assert len((output / "skipped.txt").read_text(encoding="utf-8", errors="surrogateescape").splitlines()) == 2
    labels = (output / "weights" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(labels) == sorted(["caf\\udce9", "[red] thing", "two\\nlines", "red"])
