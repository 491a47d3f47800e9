"""Requests to stop, by a cluster, torchrun or a person."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from vmamba.errors import TrainingError

#: Sent by clusters before they take a machine away, and by a person's Ctrl-C. Not every system has all of them.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class Interrupted(TrainingError):
    """A run that was asked to stop; the message says what is saved and how to continue."""


class StopRequests:
    """A context in which signals ask a run to stop instead of ending the process.

    While nothing would be lost, a request raises `Interrupted` where it arrives: before the run has begun, and within
    `immediate`. After `defer` it is noted in `pending`, for the run to save and end. A second Ctrl-C ends the process.

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

    @contextmanager
    def immediate(self, message: str) -> Iterator[None]:
        """Raise `Interrupted` with this message at a request, also at an earlier one that is pending."""
        self._message = message
        try:
            if self.pending:
                raise Interrupted(message)
            yield
        finally:
            self._message = None

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.pending = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        if self._message is not None:
            raise Interrupted(self._message)
