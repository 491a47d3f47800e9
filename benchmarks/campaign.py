"""A record of a campaign in parts, from which the next call of the same command goes on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paired import environment

from vmamba.files import atomic_write

#: Records of campaigns that are not finished, or may be continued with more trials.
FOLDER = Path(__file__).parents[1] / "build" / "campaigns"


class Record:
    """The counts of a campaign so far, kept in a file.

    Attributes:
        counts: Part → what happened → how often.
        seconds: Part → time taken, over all calls.
        failures: Descriptions of what should not have happened, one line each.
        commits: The commits that were tried, in order.

    Args:
        name: Of the campaign.
        settings: What decides its trials; a record with other settings is begun again.
        minutes: Time for this call; None for as long as it takes.
        fresh: Begin again.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], minutes: float | None, fresh: bool = False) -> None:
        self.path, self.settings = FOLDER / f"{name}.json", dict(settings)
        self.end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        content: dict[str, Any] = {}
        if self.path.is_file() and not fresh:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        if content.get("settings") != self.settings:
            content = {}
        self.counts = {part: Counter(values) for part, values in content.get("counts", {}).items()}
        self.seconds: Counter[str] = Counter(content.get("seconds", {}))
        self.failures: list[str] = content.get("failures", [])
        self.commits: list[str] = content.get("commits", [])
        commit = environment()["commit"]
        self.commits += [commit] if commit not in self.commits else []

    @property
    def late(self) -> bool:
        """True when the time for this call is over."""
        return time.monotonic() >= self.end

    @contextmanager
    def trying(self, part: str) -> Iterator[Counter[str]]:
        """The counts of a part, to be added to; saved when the ``with`` block ends without an error."""
        start = time.monotonic()
        yield self.counts.setdefault(part, Counter())
        self.seconds[part] += time.monotonic() - start
        self.save()

    def save(self) -> None:
        """Write the record."""
        content = {name: getattr(self, name) for name in ("settings", "counts", "seconds", "failures", "commits")}
        with atomic_write(self.path) as file:
            file.write(json.dumps(content, indent=1).encode("utf-8", "backslashreplace"))

    def head(self) -> str:
        """Where the results come from, as a Markdown list."""
        facts = environment() | {"commit": ", ".join(self.commits)}
        return "".join(f"- {name}: {value}\n" for name, value in facts.items())
