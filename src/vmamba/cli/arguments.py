"""Values of arguments that several commands take."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def device(name: str | None) -> torch.device:
    """The device of that name, or the fastest there is.

    Raises:
        ValueError: If there is no such device here.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return found


def outputs(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for the results of each input file: its own, numbered where several have the same."""
    seen: Counter[str] = Counter()
    names = {}
    for path in paths:
        seen[path.stem] += 1
        names[path] = path.stem if seen[path.stem] == 1 else f"{path.stem}_{seen[path.stem]}"
    return names
