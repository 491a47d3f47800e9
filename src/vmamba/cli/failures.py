"""The images that failed, for the end of a command."""

from __future__ import annotations

import errno
import sys

from vmamba.cli.explanation import explain
from vmamba.errors import VMambaError
from vmamba.terminal import printable

#: Errors of writing that the next image would meet, too.
_HOPELESS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EPIPE, errno.EACCES, errno.EPERM}


class Failures:
    """The images that failed. One image ends nothing else.

    Args:
        limit: Lines that are kept; None for all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.count = 0
        self._limit = limit
        self._lines: list[str] = []
        self._bug: BaseException | None = None

    def add(self, image: str, error: Exception) -> str:
        """Remember an image that failed; returns the reason in one line.

        Raises:
            OSError: The error itself, where the next image would meet it too: a full disk.
        """
        if isinstance(error, OSError) and error.errno in _HOPELESS and not isinstance(error, VMambaError):
            raise error
        reason = explain(error)
        if reason is None:
            reason = f"{type(error).__name__}: {error}"
            self._bug = self._bug or error
        self.note(image, reason)
        return reason

    def note(self, image: str, reason: str) -> None:
        """Remember an image that failed, with the reason."""
        self.count += 1
        if self._limit is None or len(self._lines) < self._limit:
            self._lines.append(reason if image in reason else f"{image}: {reason}")

    def finish(self, place: str = "") -> int:
        """List the failures on the error stream.

        Args:
            place: Where all of them are.

        Returns:
            Exit status: 0, or 1 if there was one.

        Raises:
            Exception: The first error that was not the image's fault but a bug, after all are listed.
        """
        for line in self._lines:
            print(f"vmamba: failed: {printable(line)}", file=sys.stderr)
        if more := self.count - len(self._lines):
            print(f"vmamba: failed: {more:,} more; see the rows with an error in {printable(place)}", file=sys.stderr)
        if self._bug is not None:
            raise self._bug
        return 1 if self.count else 0
