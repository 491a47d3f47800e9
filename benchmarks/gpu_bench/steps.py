"""The steps of the benchmark, the most important first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gpu_bench import convolution, models, scans
from gpu_bench.context import Context
from gpu_bench.plan import FROZEN, Plan

#: Preparations at a time: compilers want processors and memory, training steps the GPU's memory, too.
JOBS, TRAINING_JOBS = 6, 3


@dataclass(frozen=True)
class Step:
    """A part of the benchmark that runs in a process of its own.

    Attributes:
        name: For the command line and the rows.
        cases: What it measures, and for each the scans that must have been seen to be right.
        run: Measures and gives rows.
        prepare: Compiles a case in a process of its own, so that `run` takes it from the compilers' caches; or None.
        after: The step that tells which scans are right.
        jobs: Preparations at a time.
        seconds: Limits for the preparations and for the run.
    """

    name: str
    cases: dict[str, tuple[str, ...]]
    run: Callable[[Context], None]
    prepare: Callable[[Context, str], None] | None = None
    after: str = ""
    jobs: int = JOBS
    seconds: tuple[float, float] = (150, 150)


def schedule(plan: Plan) -> dict[str, Step]:
    """All steps by name, the most important first."""
    first, large, small = (tuple(shape.label for shape in group) for group in (plan.first, plan.large, plan.small))
    families = list(plan.families.items())

    def ours(names: tuple[str, ...], scanned: tuple[str, ...] = first) -> dict[str, tuple[str, ...]]:
        return {name: scanned if name.startswith("vmamba") else () for name in names}

    def with_frozen(names: tuple[str, ...], mode: str) -> tuple[str, ...]:
        return (names[0], names[0] + FROZEN, *names[1:]) if mode == "inference" else names

    def compared(label: str, names: tuple[str, ...], mode: str, compiled: bool = True) -> Step:
        return Step(
            f"{mode} {label}",
            ours(names),
            partial(models.compare, mode=mode, compiled=compiled),
            partial(models.prepare, mode=mode, compiled=compiled),
            after="correctness",
            jobs=TRAINING_JOBS if mode == "training" else JOBS,
            seconds=(240, 180),
        )

    def timed(name: str, labels: tuple[str, ...], after: str) -> Step:
        return Step(name, {label: (label,) for label in labels}, scans.scan, after=after)

    def checked(name: str, labels: tuple[str, ...], after: str = "") -> Step:
        return Step(name, dict.fromkeys(labels, ()), scans.correctness, scans.prepare, after=after)

    modes = ("inference", "training")
    every_size = "correctness, large" if large else "correctness"
    steps = [
        Step("graph", {plan.ours: ()}, models.graph),
        checked("correctness", first + small),
        timed("scan", first, "correctness"),
        *(compared(label, with_frozen(names, mode), mode) for label, names in families[:1] for mode in modes),
        Step("convolution", dict.fromkeys(first, ()), convolution.convolution, convolution.prepare),
        checked("correctness, large", large, after="correctness"),
        timed("scan, large", large, "correctness, large"),
        Step("growth", ours(plan.growth, first + large), models.growth, models.prepare_growth, after=every_size),
        *(compared(label, names, mode) for label, names in families[1:] for mode in modes),
        *(compared("others", (plan.ours, *plan.others), mode) for mode in modes if plan.others),
        *(compared(f"{label} eager", names, mode, compiled=False) for label, names in families[:1] for mode in modes),
    ]
    return {step.name: step for step in steps if step.cases}
