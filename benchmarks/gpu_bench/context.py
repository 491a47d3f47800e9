"""What a step is given: the plan, the device, and where its rows go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from paired import Timing, alternate

from gpu_bench.plan import Plan

#: Begins the lines of a step's output that hold a row.
ROW = "ROW "


def print_row(row: dict[str, Any]) -> None:
    """Hand a row to the process that waits for it."""
    print(ROW + json.dumps(row), flush=True)


@dataclass(frozen=True)
class Context:
    """What a step is given.

    Attributes:
        plan: What is measured.
        step: Its name.
        cases: Those of its cases that can be measured.
        device: Where.
        rounds: Of a comparison.
        emit: Called with each row.
    """

    plan: Plan
    step: str
    cases: tuple[str, ...]
    device: str
    rounds: int
    emit: Callable[[dict[str, Any]], None] = print_row

    @property
    def on_gpu(self) -> bool:
        """Whether there are CUDA graphs and figures of memory."""
        return self.device.startswith("cuda")

    def row(self, case: str, what: str, status: str = "ok", **more: Any) -> None:
        """A row of this step."""
        self.emit({"step": self.step, "case": case, "what": what, "status": status, **more})

    def timing(self, case: str, what: str, timing: Timing, **more: Any) -> None:
        """A row with median and quartiles in milliseconds."""
        names = {"ms": timing.median, "ms_low": timing.low, "ms_high": timing.high}
        self.row(case, what, **{name: round(seconds * 1e3, 4) for name, seconds in names.items()}, **more)

    def compare(
        self, cases: dict[str, Callable[[], object]], seconds: float, between: Callable[[], object] | None = None
    ) -> dict[str, Timing]:
        """Time cases in turns."""
        return alternate(cases, self.rounds, device=self.device, seconds=seconds, between=between)

    def add(
        self, cases: dict[str, Callable[[], object]], name: str, what: str, build: Callable[[], Any], **more: Any
    ) -> None:
        """Add a case that has run once, as one CUDA graph, or a row that says why it cannot be timed."""
        try:
            run = build()
            run()
            cases[name] = self.graphed(run)
        except Exception as error:
            self.row(name, what, one_line(error), **more)

    def graphed(self, run: Callable[[], object]) -> Callable[[], object]:
        """The same as one CUDA graph: the kernels without the time that Python takes to start them."""
        if not self.on_gpu:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()

        def replay(_: object = kept) -> None:
            graph.replay()

        return replay


def one_line(error: BaseException) -> str:
    """An error as a status: its type and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"failed: {type(error).__name__}: {lines[0] if lines else ''}"[:300]
