"""Fixtures of the commands' tests, as types: see tests/cli/conftest.py."""

from __future__ import annotations

from collections.abc import Callable

#: Runs a command; its exit status.
Run = Callable[..., int]
#: Runs a command that fails; the one line on its error stream.
Fails = Callable[..., str]
