"""A summary of a data set: what there is of each class, what was left out and why, what is remarkable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmamba.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

#: Unreadable images that are named one by one.
_SHOWN = 20


@dataclass(frozen=True)
class SplitSummary:
    """One split of a data set.

    Attributes:
        split: ``"train"``, ``"val"`` …
        path: Folder, file or address.
        images: Images that are used.
        counts: Class name → how often it occurs, in the order of the classes; empty where that is unknown.
        unit: What is counted: ``"images"``, ``"instances"`` or ``"pixels"``.
        left_out: Reason → number of files, images or instances that are not used.
        notes: Remarks, one line each.
        unreadable: The error, one line, of each image or label map that cannot be used, of those that were tried.
    """

    split: str
    path: str
    images: int
    counts: Mapping[str, int] = field(default_factory=dict)
    unit: str = "images"
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    unreadable: Sequence[str] = ()

    @property
    def empty_classes(self) -> list[str]:
        """Classes that do not occur."""
        return [name for name, count in self.counts.items() if not count]


@dataclass(frozen=True)
class DataSummary:
    """Summary of all splits, made before anything is trained. Plain data: `as_dict` is fit for JSON.

    Attributes:
        task: Name of the task.
        data: What was looked at, as it was given.
        splits: The splits.
        notes: Remarks that concern more than one split, one line each.
    """

    task: str
    data: str
    splits: Sequence[SplitSummary]
    notes: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as dictionaries, lists, text and numbers."""
        return dataclasses.asdict(self)

    def remarks(self) -> list[str]:
        """Left-out files, missing classes, notes and unreadable images, one line each, for a person."""
        lines = []
        for part in self.splits:
            reasons = [f"{count:,} {reason}" for reason, count in part.left_out.items() if count]
            lines += [f"{part.split}: left out {', '.join(reasons)}"] if reasons else []
            missing = part.empty_classes
            lines += [f"{part.split}: no {part.unit} of {_listed(missing)}"] if missing else []
            lines += [f"{part.split}: {note}" for note in part.notes]
            if part.unreadable:
                lines.append(f"{part.split}: {len(part.unreadable):,} files cannot be used:")
                lines += [f"  {line}" for line in part.unreadable[:_SHOWN]]
                lines += ["  …"] if len(part.unreadable) > _SHOWN else []
        return [printable(line) for line in (*lines, *self.notes)]

    def show(self, console: Console, max_classes: int | None = 20) -> None:
        """Print a table of the counts with the remarks below it; lines with paths are left whole.

        Args:
            console: See `vmamba.terminal.console`.
            max_classes: Rows of the table; more classes are summed up in one; None for all.
        """
        from rich.table import Column, Table
        from rich.text import Text

        table = Table(Column("class", overflow="fold"), *(Column(part.split, justify="right") for part in self.splits))
        names = list(dict.fromkeys(name for part in self.splits for name in part.counts))
        shown = names if max_classes is None or len(names) <= max_classes else names[: max_classes - 1]
        for name in shown:
            table.add_row(Text(printable(name)), *(_cell(part, [name]) for part in self.splits))
        if len(shown) < len(names):
            rest = names[len(shown) :]
            table.add_row(f"{len(rest):,} more classes", *(_cell(part, rest) for part in self.splits))
        table.add_section()
        table.add_row("images", *(f"{part.images:,}" for part in self.splits))
        for part in self.splits:
            console.print(printable(f"{part.split}: {part.path}"), soft_wrap=True)
        console.print(table)
        for line in self.remarks():
            console.print(line, soft_wrap=True)


def _cell(part: SplitSummary, names: Sequence[str]) -> str:
    """The count of some classes together; of pixels, their share."""
    if not part.counts:
        return ""
    count = sum(part.counts.get(name, 0) for name in names)
    if part.unit == "pixels":
        return f"{count / max(sum(part.counts.values()), 1):.2%} of the pixels"
    return f"{count:,}" if part.unit == "images" else f"{count:,} {part.unit}"


def _listed(names: Sequence[str], limit: int = 5) -> str:
    """Some of the names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + more
