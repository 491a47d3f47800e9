"""Contact sheets, mistakes and the picture of the confusion."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.tasks.classification.pictures import Mistakes, Tile, caption, draw_confusion, draw_sheet, thumbnail


def test_thumbnail_undoes_the_normalisation() -> None:
    pixels = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert np.array_equal(thumbnail(normalised, mean, std), pixels.permute(1, 2, 0).numpy())
    assert thumbnail(torch.zeros(3, 800, 400), mean, std).shape == (160, 80, 3)


def test_captions() -> None:
    assert caption("cat", 0.974) == "cat (97%)"
    assert caption("a\nb", 1) == r"a\nb (100%)"
    assert caption("x" * 100, 0.5) == "x" * 21 + "… (50%)"


@pytest.mark.parametrize("count", [1, 6, 13])
def test_a_sheet_shows_every_tile(tmp_path: Path, count: int) -> None:
    colours = [(10 * i + 5, 200, 255 - 10 * i) for i in range(count)]
    tiles = [Tile(np.full((8, 8, 3), colour, np.uint8), f"$no math$ {i}") for i, colour in enumerate(colours)]
    draw_sheet(tmp_path / "sheet.png", tiles)
    with Image.open(tmp_path / "sheet.png") as picture:
        shown = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert set(colours) <= shown


def test_the_most_confident_mistakes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mistakes = Mistakes((0, 0, 0), (1, 1, 1), limit=5)
    logits, labels = torch.randn(64, 3) * 3, torch.randint(0, 3, (64,))
    files = [f"{i}.png" for i in range(64)]
    for part in torch.arange(64).split(10):
        mistakes.add(torch.rand(len(part), 3, 4, 4), logits[part], labels[part], [files[i] for i in part])
    mistakes.gather()
    mistakes.write(tmp_path, ["a", "b", "c"])
    probabilities, guesses = logits.softmax(1).max(1)
    wrong = [i for i in range(64) if guesses[i] != labels[i]]
    expected = sorted(wrong, key=lambda i: -probabilities[i])[:5]
    with open(tmp_path / "mistakes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [files[i] for i in expected]
    assert [row["prediction"] for row in rows] == ["abc"[guesses[i]] for i in expected]
    assert [row["truth"] for row in rows] == ["abc"[labels[i]] for i in expected]
    assert (tmp_path / "mistakes.png").is_file()


def test_no_mistake_no_sheet(tmp_path: Path) -> None:
    mistakes = Mistakes((0, 0, 0), (1, 1, 1))
    mistakes.add(torch.rand(2, 3, 4, 4), torch.eye(2), torch.tensor([0, 1]), ["a", "b"])
    mistakes.write(tmp_path, ["a", "b"])
    assert [path.name for path in tmp_path.iterdir()] == ["mistakes.csv"]


def test_confusion(tmp_path: Path) -> None:
    names = ["cat", "dog", "a name of more letters than fit"]
    assert draw_confusion(tmp_path / "confusion.png", torch.tensor([[3, 1, 0], [0, 0, 0], [0, 2, 5]]), names)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert not draw_confusion(tmp_path / "large.png", torch.eye(61, dtype=torch.int64), ["x"] * 61)
    assert not (tmp_path / "large.png").exists()
