"""The progress bar of everything that takes long: on the error stream, with rate and time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from vmamba.terminal import console, printable

_quiet = False
_remarks_to_stderr = False


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.3g} {task.fields.get('unit', self.unit)}/s")


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


def progress_bar(unit: str) -> Progress:
    """A bar that disappears when done, and is not there at all away from a terminal; a context manager.

    Args:
        unit: Of the count, in the plural: ``"images"``; a task may have another, ``add_task(…, unit="windows")``.
    """
    columns = (_Description(), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    screen = console(stderr=True)
    return Progress(
        *columns,
        console=screen,
        transient=True,
        disable=_quiet or not screen.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # what is printed elsewhere than on a terminal stays out of the bar's way
    )


@contextmanager
def quiet(enable: bool = True) -> Iterator[None]:
    """Show no progress bars and no remarks inside the ``with`` block."""
    global _quiet
    before, _quiet = _quiet, enable
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """True inside `quiet`."""
    return _quiet


@contextmanager
def remarks_to_stderr(enable: bool = True) -> Iterator[None]:
    """Print remarks on the error stream inside the ``with`` block, so that the output holds results alone."""
    global _remarks_to_stderr
    before, _remarks_to_stderr = _remarks_to_stderr, enable
    try:
        yield
    finally:
        _remarks_to_stderr = before


def remark(text: object) -> None:
    """Print a line for people, unless it is to be quiet: what was written where, and the like."""
    if not _quiet:
        print(printable(text), file=sys.stderr if _remarks_to_stderr else sys.stdout, flush=True)
