"""The benchmark for a GPU, all but its measuring: order, limits, what is kept, resumed, flagged and concluded."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu
import gpu_bench.context
import pytest
import torch
from gpu_bench.conduct import Conductor, summary
from gpu_bench.context import ROW
from gpu_bench.goals import verdicts
from gpu_bench.plan import FULL, SMOKE
from gpu_bench.record import COLUMNS, Record
from gpu_bench.report import draw
from gpu_bench.steps import Step, schedule

from vmamba.tables import read_csv

pytestmark = pytest.mark.slow

HEAD = {"commit": "abc1234", "device": "a GPU", "date": "today"}
Fake = Callable[[Sequence[str], Callable[[str], None]], "str | None"]


def steps(*names: str) -> dict[str, Step]:
    """Steps of two models, ours after the scan was seen to be right."""
    cases: dict[str, tuple[str, ...]] = {"vmamba_pico": ("small",), "peer": ()}
    correctness = Step("correctness", {"small": ()}, print)
    chosen = [Step(name, cases, print, print, after="correctness", jobs=3) for name in names]
    return {step.name: step for step in (correctness, *chosen)}


def conductor(folder: Path, children: Fake, *names: str, seconds: float = 1000.0) -> Conductor:
    """A run whose processes are calls of `children` with the arguments and a reader of lines."""
    record = Record(SMOKE, folder, "gpu", dict(HEAD))
    record.resume()
    deadline = time.monotonic() + seconds
    return Conductor(record, steps(*names), (), deadline, lambda command, _, read, __: children(command[2:], read))


def row(step: str, case: str, what: str, **more: Any) -> str:
    return ROW + json.dumps({"step": step, "case": case, "what": what, "status": "ok", **more})


def well(arguments: Sequence[str], read: Callable[[str], None]) -> str | None:
    """Every process does what it should."""
    kind, step, _, *cases = arguments
    for case in cases if kind == "--run" else ():
        read(row(step, case, "error" if step == "correctness" else "compiled", value=0.1, images_per_s=500.0))
    return None


def test_everything_is_on_the_disk_after_every_row(tmp_path: Path) -> None:
    seen: list[int] = []

    def children(arguments: Sequence[str], read: Callable[[str], None]) -> str | None:
        def look(line: str) -> None:
            read(line)
            seen.append(len(read_csv(tmp_path / "gpu.csv")))
            assert "| vmamba_pico |" in (tmp_path / "gpu.md").read_text() or len(seen) == 1

        return well(arguments, look)

    run = conductor(tmp_path, children, "inference T")
    assert run.conduct(["correctness", "inference T"], again=False)
    assert seen == [1, 2, 3]
    assert run.record.outcomes == {"correctness": "done", "inference T": "done"}


def test_what_fails_is_flagged_and_the_rest_goes_on(tmp_path: Path) -> None:
    commands: list[Sequence[str]] = []

    def children(arguments: Sequence[str], read: Callable[[str], None]) -> str | None:
        commands.append(arguments)
        if arguments[0] == "--prepare" and arguments[-1] == "peer":
            return "not done within 150 s"
        well(arguments, read)
        return "ended by SIGSEGV" if arguments[:2] == ["--run", "training T"] else None

    run = conductor(tmp_path, children, "training T", "growth")
    assert run.conduct(["training T", "growth"], again=False)  # correctness comes first by itself
    assert [c for c in commands if c[0] == "--run"] == [
        ["--run", "correctness", "--cases", "small"],
        ["--run", "training T", "--cases", "vmamba_pico"],
        ["--run", "growth", "--cases", "vmamba_pico"],
    ]
    statuses = {(r["step"], r["case"]): r["status"] for r in run.record.rows}
    assert statuses["training T", "peer"] == "failed to compile: not done within 150 s"
    assert statuses["training T", "vmamba_pico"] == "ok"  # measured before the crash
    assert run.record.outcomes["training T"] == "failed: ended by SIGSEGV"
    text = (tmp_path / "gpu.md").read_text()
    assert "## Steps that broke off\n\n- training T: failed: ended by SIGSEGV" in text


def test_ours_is_not_timed_with_a_wrong_scan(tmp_path: Path) -> None:
    def children(arguments: Sequence[str], read: Callable[[str], None]) -> str | None:
        if arguments[1] == "correctness":
            read(row("correctness", "small", "error").replace('"ok"', '"wrong: the output is wrong by 5.0e-01"'))
            return None
        return well(arguments, read)

    run = conductor(tmp_path, children, "inference T")
    run.conduct(["inference T"], again=False)
    statuses = {r["case"]: r["status"] for r in run.record.rows if r["step"] == "inference T"}
    assert statuses == {"vmamba_pico": "not timed: the scan was not seen to be right at small", "peer": "ok"}


def test_the_next_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["inference T", "growth"]

    def late(arguments: Sequence[str], read: Callable[[str], None]) -> str | None:
        well(arguments, read)
        if arguments[:2] == ["--run", "inference T"]:  # after its rows, before its end
            run.deadline = time.monotonic() - 1
            return "not done within 3 s"
        return None

    run = conductor(tmp_path, late, *names)
    assert not run.conduct(names, again=False)
    assert "no time left for the whole of inference T; the same command begins it again" in capsys.readouterr().out
    ran: list[str] = []

    def children(arguments: Sequence[str], read: Callable[[str], None]) -> str | None:
        ran.append(" ".join(arguments[:2]))
        return well(arguments, read)

    run = conductor(tmp_path, children, *names)
    assert list(run.record.outcomes) == ["correctness"]
    assert len(run.record.rows) == 3  # what was measured stays until it is measured again
    assert run.conduct(names, again=False)
    assert ran == [f"{kind} {name}" for name in names for kind in ("--prepare", "--prepare", "--run")]
    assert len(run.record.rows) == 5
    assert run.record.outcomes == dict.fromkeys(["correctness", *names], "done")

    ran.clear()
    assert run.conduct(names, again=False)
    assert ran == []
    assert run.conduct(["growth"], again=True)
    assert ran == ["--prepare growth", "--prepare growth", "--run growth"]
    assert len(run.record.rows) == 5
    assert not conductor(tmp_path, well, "other", seconds=1).conduct(["other"], again=False)
    assert "no time left for other and what follows" in capsys.readouterr().out


def test_other_code_begins_anew(tmp_path: Path) -> None:
    conductor(tmp_path, well, "growth").conduct(["growth"], again=False)
    record = Record(SMOKE, tmp_path, "gpu", HEAD | {"load": "high", "commit": "abc1234 with changes"})
    assert record.resume()  # the results themselves are changes
    assert len(record.rows) == 3
    for change in ({"commit": "def5678"}, {"device": "another"}, {"plan": "full"}):
        assert not Record(SMOKE, tmp_path, "gpu", HEAD | change).resume()


def test_few_preparations_at_once(tmp_path: Path) -> None:
    lock, running, peak = threading.Lock(), [0], [0]

    def children(arguments: Sequence[str], read: Callable[[str], None]) -> str | None:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        return well(arguments, read)

    run = conductor(tmp_path, children)
    many = Step("training T", {f"peer {i}": () for i in range(9)}, print, print, jobs=3)
    assert run.run_step(many)
    assert peak[0] == 3
    assert all(step.jobs <= 3 for step in schedule(FULL).values() if "training" in step.name)


def test_the_most_important_comes_first() -> None:
    names = list(schedule(FULL))
    assert names[:5] == ["graph", "correctness", "scan", "inference T", "training T"]
    assert names.index("scan, large") < names.index("growth") < names.index("inference S")
    assert names[-4:] == ["inference others", "training others", "inference T eager", "training T eager"]
    for step in schedule(FULL).values():
        assert not step.after or names.index(step.after) < names.index(step.name)


def test_growth_is_timed_where_the_scans_of_large_images_are_right() -> None:
    needed = schedule(FULL)["growth"].cases["vmamba_tiny_s1l8"]
    assert {*needed} == {shape.label for shape in (*FULL.first, *FULL.large)}


def values(step: str, case: str, what: str, **more: Any) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS, "") | {"step": step, "case": case, "what": what, "status": "ok"} | more


def test_goals() -> None:
    label = FULL.first[0].label
    swin, ours = "swin_tiny_patch4_window7_224", "vmamba_tiny_s1l8"
    rows = [
        values("graph", ours, "inference", value=27),
        values("correctness", label, "error", value=0.2),
        values("correctness", FULL.first[1].label, "error", status="wrong: the output is wrong by 5.0e-01"),
        values("scan", "fused", "forward", ms=2.0, of_floor=0.54, note=label),
        values("scan", "unfused (mamba_ssm)", "forward", ms=10.0, note=label),
        values("scan", "unfused (our selective_scan)", "forward", status="failed: out of memory", note=label),
        values("convolution", "two layers", "forward", ms=3.0, note=label),
        values("inference T", ours, "compiled", images_per_s=150.0),
        values("inference T", swin, "compiled", images_per_s=100.0),
        values("inference T", "convnext_tiny", "", status="failed to compile: not done within 240 s"),
        values("growth", ours, "inference", size=512, ms=1.0),
        values("growth", ours, "inference", size=2048, ms=20.0),
    ]
    outcomes = {"graph": "done", "correctness": "done", "scan": "done", "inference T": "done", "growth": "done"}
    lines = [str(verdict) for verdict in verdicts(rows, outcomes, FULL)]
    for line in (
        f"graphs of {ours}, inference: 27, wanted = 1: missed",
        f"graphs of {ours}, training: wanted = 1: not measured: no such case",
        f"scan right, {label}: worst error over tolerance: 0.2, wanted ≤ 1: reached",
        "scan right, 224² stage 2: worst error over tolerance: wanted ≤ 1: "
        "not measured: wrong: the output is wrong by 5.0e-01",
        f"scan, {label}, forward: of the floor: 0.54, wanted ≥ 0.6: missed by 10%",
        f"scan, {label}, forward: against unfused (mamba_ssm): 5 ×, wanted ≥ 4 ×: reached",
        f"scan, {label}, forward: against unfused (our selective_scan): wanted ≥ 4 ×: "
        "not measured: failed: out of memory",
        f"inference, compiled, {ours} against swin_tiny: 1.5 ×, wanted ≥ 1.36 ×: reached",
        f"inference, compiled, {ours} against convnext_tiny: wanted ≥ 1 ×: "
        "not measured: failed to compile: not done within 240 s",
        f"training, compiled, {ours} against swin_tiny: wanted ≥ 1 ×: not measured: not run yet",
        "time per pixel, 2048² against 512²: 1.25 ×, wanted ≤ 1.15 ×: missed by 9%",
    ):
        assert line in lines
    assert len(lines) == 2 + 4 + 2 * 4 * 2 + 1 + 2 * 2 + 1 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scans"], "unknown step 'scans'; choose from 'graph', 'correctness', 'scan'"),
        (["--rounds", "2"], "--rounds must be at least 3 for quartiles, got 2"),
        ([], "no GPU is in reach of PyTorch"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as caught:
        gpu.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step in a real process; everything else is not measured, and the next run knows it."""
    command = ["graph", "--plan", "smoke", "--device", "cpu", "--output", str(tmp_path), "--commit", "abc1234"]
    assert gpu.main(command) == 0
    output = capsys.readouterr().out
    assert "graphs of vmamba_pico, inference: 1, wanted = 1: reached" in output
    assert re.search(r"scan, small, forward: of the floor: wanted ≥ 0.6: not measured: not run yet", output)
    assert {r["case"] for r in read_csv(tmp_path / "gpu.csv")} == {"vmamba_pico"}
    assert "commit: abc1234" in (tmp_path / "gpu.md").read_text()
    head = json.loads((tmp_path / "gpu.json").read_text())["head"]
    record = Record(SMOKE, tmp_path, "gpu", head)
    assert record.resume()
    assert record.outcomes == {"graph": "done"}
    assert summary(record) in output


def test_it_runs_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vmamba.progress", None)  # as where rich is not installed
    assert gpu_bench.context.alternate({"a": int}, 3)["a"].median > 0


def test_picture(tmp_path: Path) -> None:
    rows = [
        values("scan", "fused", "forward", of_floor=0.5, note="224² stage 1"),
        values("inference T", "vmamba_tiny_s1l8", "compiled", images_per_s=100.0, batch=128),
        values("inference T", "swin_tiny_patch4_window7_224", "compiled", status="failed: out of memory"),
        *(values("growth", "vmamba_tiny_s1l8", "inference", size=s, ms=s**2 / 1e6, peak_mib=s / 9) for s in (64, 128)),
    ]
    draw(rows, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 10_000
    draw([r | {"status": "failed: out of memory"} for r in rows], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_plans_name_the_cases_of_their_goals() -> None:
    for plan in (FULL, SMOKE):
        family = next(iter(plan.families.values()))
        assert {*plan.inference, *plan.training} <= set(family)
        assert set(plan.compared_sizes) <= set(plan.sizes)
        assert plan.growth[0] == plan.ours
