"""The tutorial, run as it stands on handwritten digits in place of photographs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from support.runs import read_rows
from vmamba.cli import main

pytestmark = pytest.mark.slow

TUTORIAL = (Path(__file__).parents[2] / "docs" / "finetune.md").read_text()


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At least 98.5 % of 360 held-out digits, with the defaults."""
    assert len(TUTORIAL.splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    parts = train_test_split(np.arange(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
    for split, chosen in zip(("train", "val"), parts, strict=True):
        for i in chosen:
            folder = tmp_path / "photos" / split / str(digits.target[i])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (255 - digits.images[i] * (255 / 16)).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:04d}.png")

    for block in re.findall(r"```sh\n(.*?)```", TUTORIAL, flags=re.DOTALL):
        for command in block.splitlines():
            program, *arguments = shlex.split(command)
            assert program == "vmamba"
            if "--pretrained" not in arguments:  # needs the network
                assert main(arguments) == 0, command
    (row,) = read_rows(tmp_path / "results" / "results.csv")
    assert float(row["images"]) == 360
    assert float(row["top1"]) >= 98.5
    assert (tmp_path / "results" / "confusion.csv").is_file()

    capsys.readouterr()
    for program in re.findall(r"```python\n(.*?)```", TUTORIAL, flags=re.DOTALL):
        exec(compile(program, "finetune.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_class_names_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spaces and full stops, in the command that trains and in the program that predicts."""
    monkeypatch.chdir(tmp_path)
    names = ["St. Bernard", "great dane", "猫"]
    for split, count in (("train", 4), ("val", 1)):
        for i, name in enumerate(names):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (80 * i, 40 * number, 0)).save(folder / f"a.{number}.png")
    arguments = "train --data photos --model vmamba_pico --output runs/photos --epochs 1 --batch-size 4"
    assert main([*arguments.split(), "--workers", "0", "--set", "warmup_epochs=0"]) == 0
    capsys.readouterr()
    for program in re.findall(r"```python\n(.*?)```", TUTORIAL, flags=re.DOTALL):
        exec(compile(program, "finetune.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names)
    for line, name in zip(lines, sorted(names), strict=True):
        assert line.startswith(f"photos/val/{name}/a.0.png ")
        assert any(f"png {guess} " in line for guess in names)
