"""Programs in forks of one process that has imported `vmamba` and nothing more, which would be most of their time."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

_COMMAND = "import runpy, sys; sys.argv = {!r}; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


@functools.cache
def _server() -> ForkServerContext:
    server = multiprocessing.get_context("forkserver")  # here, since Windows has none
    server.set_forkserver_preload(["vmamba"])
    return server


class Forked:
    """A process like that of ``subprocess.Popen([sys.executable, "-c", code])``, which leads a session of its own."""

    def __init__(self, code: str, cwd: Path | None = None) -> None:
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)
        self._printed = [Path(folder, name) for name in ("out", "err")]
        for path in self._printed:
            path.touch()
        self._process = _server().Process(target=_execute, args=(code, str(cwd or Path.cwd()), self._printed))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; what was printed, and what on the error stream."""
        self.wait(timeout)
        out, err = (path.read_text() for path in self._printed)
        return out, err


Process = subprocess.Popen[str] | Forked


def run_forked(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``subprocess.run([sys.executable, "-c", code])``."""
    process = Forked(code, cwd)
    out, err = process.communicate()
    return subprocess.CompletedProcess(code, process.wait(), out, err)


def module(name: str, arguments: Sequence[object]) -> str:
    """The code of ``python -m name arguments…``."""
    return _COMMAND.format([name, *map(str, arguments)], name)


def _execute(code: str, cwd: str, streams: list[Path]) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the system's again, instead of that of this process
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    sys.path[:] = ["", *filter(None, sys.path)]
    sys.argv = ["-c"]
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
