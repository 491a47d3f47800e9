"""Image classification."""

from typing import Any

from vmamba._moved import moved


def __getattr__(name: str) -> Any:
    """Names that this module had in the first release."""
    return moved(__name__, name)
