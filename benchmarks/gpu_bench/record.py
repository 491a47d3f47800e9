"""What has been measured so far, on the disk after every row, and taken up again by the next run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paired import write_csv

from gpu_bench.plan import Plan
from gpu_bench.report import report
from vmamba.files import atomic_write

Row = dict[str, Any]
#: Of the rows: numbers, texts, or "" for nothing. `status` is "ok" or says why there are no figures.
COLUMNS = (
    *("step", "case", "what", "status", "ms", "ms_low", "ms_high", "batch", "size", "images_per_s"),
    *("of_floor", "peak_mib", "value", "note"),
)


@dataclass
class Record:
    """Rows of a run, and how its steps ended.

    Attributes:
        plan: Whose goals the report judges.
        folder, name: Of the files: .json, which is read again, .csv and .md.
        head: Where the figures come from.
        rows: One for each figure, or for what has none.
        outcomes: Step → "done", or what went wrong.
    """

    plan: Plan
    folder: Path
    name: str
    head: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)

    def resume(self) -> bool:
        """Take up what an earlier run measured of the same code, plan and device; True if there is any."""
        path = self.folder / f"{self.name}.json"
        if not path.exists():
            return False
        content = json.loads(path.read_text(encoding="utf-8"))
        if _origin(content["head"]) != _origin(self.head):
            return False
        self.rows, self.outcomes = content["rows"], content["outcomes"]
        return True

    def forget(self, step: str) -> None:
        """Drop the rows and the outcome of a step."""
        self.rows = [row for row in self.rows if row["step"] != step]
        self.outcomes.pop(step, None)

    def add(self, row: Row) -> None:
        """Keep a row, and save everything."""
        self.rows.append({name: row.get(name, "") for name in COLUMNS})
        self.save()

    def end(self, step: str, outcome: str) -> None:
        """Keep how a step ended, and save everything."""
        self.outcomes[step] = outcome
        self.save()

    def right(self) -> set[str]:
        """Labels of the scans that were seen to be right."""
        return {row["case"] for row in self.rows if row["what"] == "error" and row["status"] == "ok"}

    def save(self) -> None:
        """Write the files, each whole or not at all."""
        content = {"head": self.head, "outcomes": self.outcomes, "rows": self.rows}
        for suffix, text in (
            (".json", json.dumps(content, indent=1, ensure_ascii=False)),
            (".md", report(self.rows, self.outcomes, self.plan, self.head, self.name)),
        ):
            with atomic_write(self.folder / (self.name + suffix)) as file:
                file.write(text.encode())
        if self.rows:
            write_csv(self.folder / f"{self.name}.csv", self.rows, self.head)


def _origin(head: dict[str, str]) -> dict[str, str]:
    """What two runs must have in common; the files that they write do not count as changes."""
    kept = {key: head.get(key, "") for key in ("plan", "device", "versions", "commit")}
    return kept | {"commit": kept["commit"].removesuffix(" with changes")}
