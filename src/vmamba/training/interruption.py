"""Requests to stop, by a cluster, torchrun or a person."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

#: Sent by clusters before they take a machine away, and by a person's Ctrl-C. Not every system has all of them.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop; the message says what is saved and how to continue.

    Not an `Exception`: it may be raised while a file is read, and must not be taken for a fault of the file.
    """


class StopRequests:
    """A context in which signals ask a run to stop instead of ending the process.

    Before the run has begun a request raises `Interrupted` where it arrives. After `defer` it is noted in `pending`,
    for the run to save and end, or to `check`. A second Ctrl-C ends the process.

    Attributes:
        pending: A request has arrived.
    """

    def __init__(self) -> None:
        self.pending = False
        self._message: str | None = "stopped before the first step; give the same command again"
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Only note requests from now on.

        Raises:
            Interrupted: If there has been one.
        """
        message, self._message = self._message, None
        if self.pending:
            raise Interrupted(message)

    def check(self, message: str) -> None:
        """Raise `Interrupted` with this message if there has been a request.

        For work that may end here and there, such as validation. Raised out of the handler, in the midst of other
        people's code, it could be caught by anyone, and leave anything half done.
        """
        if self.pending:
            raise Interrupted(message)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.pending = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        if self._message is not None:
            raise Interrupted(self._message)
