"""Processes with a time limit: what hangs or crashes in one costs nothing but its own result."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence


def run_child(
    command: Sequence[str],
    seconds: float,
    read: Callable[[str], None] = lambda line: None,
    environment: Mapping[str, str] | None = None,
) -> str | None:
    """Run a command to its end, or end it, with all processes that it has started.

    Args:
        command: Program and arguments.
        seconds: The limit.
        read: Called with each line of output, errors among them, as soon as it is there.
        environment: Further variables.

    Returns:
        None, or one line about what went wrong: the limit, a signal, or the last line of output.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | dict(environment or {}),
        start_new_session=True,
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(child)

    seconds = max(seconds, 0)
    timer = threading.Timer(seconds, end)
    timer.start()
    lines: deque[str] = deque(maxlen=1)
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip():
                lines.append(line.strip())
            read(line.rstrip("\n"))
        status = child.wait()
    finally:
        timer.cancel()
        _kill(child)  # also what a child that has ended leaves behind, and a child that is left by an exception
        child.wait()
        child.stdout.close()
    if late.is_set():
        return f"not done within {seconds:.0f} s"
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    if status:
        return (lines[-1] if lines else f"exit status {status}")[:300]
    return None


def follow_parent() -> None:
    """End this process and what it has started as soon as its parent is gone, killed before it could do so itself."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _kill(child: subprocess.Popen[str]) -> None:
    """End the child's process group, of which it is the leader."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
