"""What was aimed at, and whether the rows reach it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gpu_bench.plan import FROZEN, Plan

Row = Mapping[str, Any]
#: Of the scan's time, the part that nothing can go below; its speed against the unfused pipeline; growth per pixel.
OF_FLOOR, SPEEDUP, GROWTH = 0.6, 4.0, 1.15


@dataclass(frozen=True)
class Verdict:
    """A goal and what became of it.

    Attributes:
        goal: What it is about.
        wanted: The figure that was aimed at, as text.
        measured: The figure, as text, or "".
        result: "reached", "missed by …", or "not measured: …".
    """

    goal: str
    wanted: str
    measured: str
    result: str

    def __str__(self) -> str:
        return f"{self.goal}: {self.measured and self.measured + ', '}wanted {self.wanted}: {self.result}"


class NotMeasuredError(Exception):
    """Why there is no figure."""


def verdicts(rows: Sequence[Row], outcomes: Mapping[str, str], plan: Plan) -> list[Verdict]:
    """One for each goal, measured or not, in the order of the steps."""
    return [
        _verdict(goal, measure, sign, wanted, unit)
        for goal, measure, sign, wanted, unit in _goals(_Rows(rows, outcomes), plan)
    ]


_Goal = tuple[str, Callable[[], float], str, float, str]


def _verdict(goal: str, measure: Callable[[], float], sign: str, wanted: float, unit: str) -> Verdict:
    aim = f"{sign} {wanted:g}{unit}"
    try:
        value = measure()
    except NotMeasuredError as error:
        return Verdict(goal, aim, "", f"not measured: {error}")
    reached = {"≥": value >= wanted, "≤": value <= wanted, "=": value == wanted}[sign]
    if reached:
        result = "reached"
    elif sign == "=" or not math.isfinite(value):
        result = "missed"
    else:
        result = f"missed by {abs(value / wanted - 1):.0%}"
    return Verdict(goal, aim, f"{value:.3g}{unit}", result)


class _Rows:
    """Rows to look up."""

    def __init__(self, rows: Sequence[Row], outcomes: Mapping[str, str]) -> None:
        self.rows, self.outcomes = rows, outcomes

    def value(self, column: str, step: str, case: str, what: str, **more: object) -> float:
        """A figure.

        Raises:
            NotMeasuredError: If there is none.
        """
        reason = self.outcomes.get(step, "not run yet")
        for row in self.rows:
            if row["step"] != step or row["case"] not in (case, more.get("note")):
                continue
            if row["status"] != "ok":
                reason = row["status"] if row["note"] in ("", more.get("note")) else reason
            elif row["what"] == what and row[column] != "" and all(row[key] == value for key, value in more.items()):
                return float(row[column])
        raise NotMeasuredError("no such case" if reason == "done" else reason)

    def ratio(self, column: str, one: tuple[str, str, str], other: tuple[str, str, str], **more: object) -> float:
        """One figure divided by another: each by step, case and what."""
        return self.value(column, *one, **more) / self.value(column, *other, **more)

    def baselines(self, label: str, what: str) -> list[str]:
        """What a scan was compared with, measured or not."""
        wanted = ("scan", label, what)
        cases = [row["case"] for row in self.rows if (row["step"], row["note"], row["what"]) == wanted]
        return [case for case in dict.fromkeys(cases) if case != "fused"] or ["unfused (our selective_scan)"]


def _goals(rows: _Rows, plan: Plan) -> Iterator[_Goal]:
    for mode in ("inference", "training"):
        yield f"graphs of {plan.ours}, {mode}", lambda m=mode: rows.value("value", "graph", plan.ours, m), "=", 1, ""
    for shape in plan.first:
        label = shape.label
        yield (
            f"scan right, {label}: worst error over tolerance",
            lambda x=label: rows.value("value", "correctness", x, "error"),
            "≤",
            1,
            "",
        )
    for what in ("forward", "forward + backward"):
        for shape in plan.first:
            label = shape.label
            yield (
                f"scan, {label}, {what}: of the floor",
                lambda x=label, w=what: rows.value("of_floor", "scan", "fused", w, note=x),
                "≥",
                OF_FLOOR,
                "",
            )
            for other in rows.baselines(label, what):
                yield (
                    f"scan, {label}, {what}: against {other}",
                    lambda x=label, w=what, o=other: rows.ratio("ms", ("scan", o, w), ("scan", "fused", w), note=x),
                    "≥",
                    SPEEDUP,
                    " ×",
                )
    family = next(iter(plan.families))
    for mode, wanted in (("inference", plan.inference), ("training", plan.training)):
        step = f"{mode} {family}"
        forms = ("", FROZEN) if mode == "inference" else ("",)
        for form, (peer, ratio) in product(forms, wanted.items()):
            ours = plan.ours + form
            yield (
                f"{mode}, compiled, {ours} against {peer.split('_patch', maxsplit=1)[0]}",
                lambda s=step, o=ours, p=peer: rows.ratio("images_per_s", (s, o, "compiled"), (s, p, "compiled")),
                "≥",
                ratio,
                " ×",
            )
    small, large = plan.compared_sizes

    def growth() -> float:
        one, other = (rows.value("ms", "growth", plan.growth[0], "inference", size=n) for n in (large, small))
        return one / other * small**2 / large**2

    yield f"time per pixel, {large}² against {small}²", growth, "≤", GROWTH, " ×"
