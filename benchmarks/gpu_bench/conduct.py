"""Running the steps, each in a process of its own, within the time for everything."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_bench.children import run_child
from gpu_bench.context import ROW
from gpu_bench.goals import verdicts
from gpu_bench.record import Record
from gpu_bench.steps import Step

SCRIPT = Path(__file__).parents[1] / "gpu.py"
#: For processes that compile while others do: fewer threads each, and memory that is given back.
PREPARING = {"TORCHINDUCTOR_COMPILE_THREADS": "4", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
#: Seconds below which nothing is begun.
SHORT = 15.0

Run = Callable[[Sequence[str], float, Callable[[str], None], dict[str, str] | None], str | None]


@dataclass
class Conductor:
    """One run of the benchmark.

    Attributes:
        record: Where rows go.
        steps: All of them.
        options: Of every process: plan, device, rounds.
        deadline: On the monotonic clock.
        run: Runs the script with arguments; `run_child` but in tests.
    """

    record: Record
    steps: dict[str, Step]
    options: tuple[str, ...]
    deadline: float
    run: Run = run_child

    def conduct(self, names: Sequence[str], again: bool) -> bool:
        """Run steps that have no outcome yet, or all of them `again`; False where the time was over before the end."""
        for name in names:
            step = self.steps[name]
            if name in self.record.outcomes and not again:
                continue
            if step.after and step.after not in self.record.outcomes and not self.conduct([step.after], again=False):
                return False
            if self.left() < SHORT:
                print(f"no time left for {name} and what follows; the same command goes on there", flush=True)
                return False
            self.record.forget(name)
            if not self.run_step(step):
                return False
        return True

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run_step(self, step: Step) -> bool:
        """Prepare and run a step; False where the time for everything was over, so that it has to be run again.

        Cases that cannot be measured become rows that say why.
        """
        cases = [case for case in step.cases if self._allowed(step, case)]
        if step.prepare and cases:
            cases = self._prepare(step, cases)
        outcome: str | None = None
        if cases and self.left() > 0:
            limit = min(step.seconds[1], self.left())
            print(f"— {step.name}, at most {limit:.0f} s", flush=True)
            outcome = self.run(self._command("--run", step.name, "--cases", *cases), limit, self._read, None)
        if self.left() <= 0:
            print(f"no time left for the whole of {step.name}; the same command begins it again", flush=True)
            return False
        if outcome:
            print(f"! {step.name}: {outcome}", flush=True)
        self.record.end(step.name, f"failed: {outcome}" if outcome else "done")
        return True

    def _allowed(self, step: Step, case: str) -> bool:
        unseen = [label for label in step.cases[case] if label not in self.record.right()]
        if unseen:
            self._flag(step, case, f"not timed: the scan was not seen to be right at {', '.join(unseen)}")
        return not unseen

    def _prepare(self, step: Step, cases: list[str]) -> list[str]:
        """Compile the cases, several at a time; those that can be measured."""
        end = time.monotonic() + min(step.seconds[0], self.left())
        print(f"— {step.name}: compiling {', '.join(cases)}", flush=True)

        def prepare(case: str) -> str | None:
            command = self._command("--prepare", step.name, "--cases", case)
            return self.run(command, end - time.monotonic(), lambda line: None, PREPARING)

        with ThreadPoolExecutor(step.jobs) as pool:
            problems = dict(zip(cases, pool.map(prepare, cases), strict=True))
        for case, problem in problems.items():
            if problem:
                self._flag(step, case, f"failed to compile: {problem}")
        return [case for case in cases if not problems[case]]

    def _flag(self, step: Step, case: str, status: str) -> None:
        print(f"! {step.name}, {case}: {status}", flush=True)
        self.record.add({"step": step.name, "case": case, "status": status})

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(SCRIPT), *arguments, *self.options]

    def _read(self, line: str) -> None:
        """Keep a row, or show what else a step prints."""
        if not line.startswith(ROW):
            print(line, flush=True)
            return
        row: dict[str, Any] = json.loads(line.removeprefix(ROW))
        self.record.add(row)
        print(*(f"{k} {v}" for k, v in row.items() if v != "" and (k, v) != ("status", "ok")), sep=" · ", flush=True)


def summary(record: Record) -> str:
    """A line for each goal."""
    return "\n".join(map(str, verdicts(record.rows, record.outcomes, record.plan)))
