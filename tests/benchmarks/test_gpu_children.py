"""The processes of the benchmark for a GPU: their limits and their ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import gpu_bench
import pytest
from gpu_bench.children import run_child

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print('a'); print('b')", None),
        ("print('a'); print('b'); raise SystemExit(3)", "b"),
        ("raise SystemExit(3)", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("print('a'); raise ValueError('out of memory')", "ValueError: out of memory"),
    ],
)
def test_children(code: str, problem: str | None) -> None:
    lines: list[str] = []
    assert run_child([sys.executable, "-c", code], 60, lines.append) == problem
    assert lines[:1] == (["a"] if "'a'" in code else [])


def test_a_child_and_its_own_children_are_ended(tmp_path: Path) -> None:
    """Also one that ignores every polite request, and holds the pipe open through a process of its own."""
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    lines: list[str] = []
    start = time.monotonic()
    assert run_child([sys.executable, "-c", code], 2, lines.append) == "not done within 2 s"
    assert time.monotonic() - start < 20
    assert ended(Path(f"/proc/{lines[0]}/stat"))


def test_no_child_outlives_the_run(tmp_path: Path) -> None:
    """Of which nobody tells it when it is killed."""
    folder = Path(gpu_bench.__file__).parents[1]
    child = f"import sys, time; sys.path.append({str(folder)!r}); from gpu_bench.children import follow_parent"
    child += "; follow_parent(); print('up', flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys; c = subprocess.Popen(sys.argv[1:], start_new_session=True, stdout=subprocess.PIPE)"
    )
    parent += "; c.stdout.readline(); print(c.pid, flush=True); c.wait()"
    command = [sys.executable, "-c", parent, sys.executable, "-c", child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        number = running.stdout.readline().strip()
        running.kill()
    assert ended(Path(f"/proc/{number}/stat"))


def ended(process: Path) -> bool:
    """Whether a process is gone, or waits for nothing but its parent, some moments after it was killed."""
    for _ in range(200):
        try:
            if process.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False
