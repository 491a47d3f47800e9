"""Cases of parametrised tests that are marked."""

from __future__ import annotations

from typing import Any

import pytest


def exhaustive(*values: object) -> Any:
    """A case that `make test` leaves out, since others show the same in less time; `make test-exhaustive` runs it."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)
