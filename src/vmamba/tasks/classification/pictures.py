"""Pictures of classifications: a contact sheet of images with what they are taken for, and the confusion."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vmamba.plots import figure
from vmamba.tables import write_table
from vmamba.terminal import printable

#: Images in a row of a sheet, and inches of one.
_COLUMNS, _INCHES = 6, 1.6
#: Pixels of the long side of an image in a sheet.
_PIXELS = 160
#: Classes of a confusion that can be told apart in a picture, and those whose counts can be read.
_CLASSES, _COUNTED = 60, 20
#: Letters of a name in a caption.
_LETTERS = 22


class Tile(NamedTuple):
    """One image of a sheet.

    Attributes:
        pixels: uint8 (H, W, 3).
        caption: Of one or two lines.
        wrong: The caption is set in bold red.
    """

    pixels: NDArray[np.uint8]
    caption: str
    wrong: bool = False


def thumbnail(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """The small picture of an image as a model takes it, normalised (3, H, W): uint8 (h, w, 3)."""
    centre, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    levels = ((pixels.detach().cpu().float() * scale + centre) * 255).round().clamp(0, 255)
    return reduced(levels.byte().permute(1, 2, 0).numpy())


def reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) of at most the size that a sheet shows."""
    image = Image.fromarray(pixels)
    image.thumbnail((_PIXELS, _PIXELS))
    return np.asarray(image)


def caption(label: str, probability: float) -> str:
    """``"label (97%)"``, a long label cut off."""
    shown = printable(label)
    return f"{shown if len(shown) <= _LETTERS else shown[: _LETTERS - 1] + '…'} ({probability:.0%})"


def draw_sheet(path: Path, tiles: Sequence[Tile], title: str = "", *, extra: str = "analysis") -> None:
    """Write a contact sheet, six images a row.

    Raises:
        MissingPackageError: If matplotlib is not installed.
        OSError: If the file cannot be written.
    """
    rows, columns = -(-len(tiles) // _COLUMNS), min(len(tiles), _COLUMNS)
    lines = max((tile.caption.count("\n") + 1 for tile in tiles), default=1)
    with figure(path, size=(_INCHES * columns, (_INCHES + 0.12 * lines) * rows + 0.5), extra=extra, dpi=120) as page:
        if title:
            page.suptitle(title, fontsize=10)
        axes = page.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        for axis, tile in zip(axes, tiles, strict=False):
            axis.imshow(tile.pixels)
            weight, colour = ("bold", "#D55E00") if tile.wrong else ("normal", "black")
            axis.set_title(tile.caption, fontsize=8, color=colour, fontweight=weight)


def draw_confusion(path: Path, confusion: Tensor, names: Sequence[str]) -> bool:
    """Write the confusion, (classes, classes) with a row for each true class, as fractions of it; False for
    too many classes.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    if len(names) > _CLASSES:
        return False
    counts = confusion.double().cpu()
    fractions = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    inches = 2.5 + 0.28 * len(names)
    with figure(path, size=(inches + 0.6, inches), extra="train", dpi=110) as page:
        axis = page.add_subplot()
        axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        ticks = range(len(names))
        labels = [printable(name)[:_LETTERS] for name in names]
        axis.set_xticks(ticks, labels, rotation=90, fontsize=8)
        axis.set_yticks(ticks, labels, fontsize=8)
        axis.set(xlabel="prediction", ylabel="truth")
        if len(names) <= _COUNTED:
            for row, column in confusion.nonzero().tolist():
                ink = "white" if fractions[row, column] > 0.5 else "black"
                count = str(int(confusion[row, column]))
                axis.text(column, row, count, ha="center", va="center", fontsize=7, color=ink)
    return True


class _Mistake(NamedTuple):
    probability: float
    number: int
    file: str
    truth: int
    guess: int
    pixels: NDArray[np.uint8]


class Mistakes:
    """The most confident mistakes among the images of all processes.

    Args:
        mean: Of the normalisation, by channel.
        std: Likewise.
        limit: How many are kept.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], limit: int = 24) -> None:
        self.mean, self.std, self.limit = mean, std, limit
        self._worst: list[_Mistake] = []
        self._seen = 0

    def add(self, images: Tensor, logits: Tensor, labels: Tensor, files: Iterable[str]) -> None:
        """Look at a batch: normalised images (B, 3, H, W), logits (B, classes), labels (B,), names."""
        probabilities, guesses = logits.float().softmax(1).max(1)
        rows = zip(probabilities.tolist(), guesses.tolist(), labels.tolist(), files, strict=True)
        for i, (probability, guess, truth, file) in enumerate(rows):
            self._seen += 1
            full = len(self._worst) == self.limit
            if guess == truth or (full and probability <= self._worst[0].probability):
                continue
            small = thumbnail(images[i], self.mean, self.std)
            mistake = _Mistake(probability, -self._seen, file, truth, guess, small)
            (heapq.heappushpop if full else heapq.heappush)(self._worst, mistake)

    def gather(self) -> None:
        """Put those of all processes together; all call it."""
        if dist.is_initialized():
            everyone: list[list[_Mistake]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(everyone, self._worst)
            every = [mistake for its in everyone for mistake in its]
            self._worst = heapq.nlargest(self.limit, every, key=lambda mistake: mistake[:2])

    def write(self, folder: Path, names: Sequence[str]) -> None:
        """Write ``mistakes.csv``, and ``mistakes.png`` where there is a mistake.

        Raises:
            MissingPackageError: If matplotlib is not installed.
        """
        worst = sorted(self._worst, key=lambda mistake: mistake[:2], reverse=True)
        rows = [(m.file, names[m.truth], names[m.guess], f"{m.probability:.4f}") for m in worst]
        write_table(folder / "mistakes.csv", ("image", "truth", "prediction", "probability"), rows)
        if worst:
            tiles = []
            for m in worst:
                guess = caption(names[m.guess], m.probability)
                tiles.append(Tile(m.pixels, f"{guess}\nis {printable(names[m.truth])[:_LETTERS]}", wrong=True))
            draw_sheet(folder / "mistakes.png", tiles, "the most confident mistakes", extra="train")
