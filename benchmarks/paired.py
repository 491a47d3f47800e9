"""What the benchmarks share: paired timing, as in ``vmamba analyze throughput``, and where a figure comes from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import vmamba.analysis.throughput
from vmamba.analysis.throughput import Timing, alternate, step
from vmamba.tables import write_csv

__all__ = ["RESULTS", "Timing", "alternate", "environment", "step", "write_csv"]

RESULTS = Path(__file__).parent / "results"


def environment(device: str = "cpu") -> dict[str, str]:
    """What a figure depends on, for the head of a report."""
    changed = " with changes" if _git("status", "--porcelain", "-uno") else ""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    made = {"commit": _git("rev-parse", "--short", "HEAD") + changed, "command": command}
    return made | vmamba.analysis.throughput.environment(device)


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    except FileNotFoundError:  # a machine without git
        return ""
    return result.stdout.strip()
