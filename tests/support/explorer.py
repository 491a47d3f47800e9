"""Pages under test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn


@dataclass(frozen=True)
class Site:
    """A page.

    Attributes:
        folder: Where it is.
        model: That it shows.
        pictures: That it offers.
    """

    folder: Path
    model: nn.Module
    pictures: list[Path]
