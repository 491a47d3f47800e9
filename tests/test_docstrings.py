"""Docstrings: their examples are run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
import torch

import vmamba

PACKAGE = Path(vmamba.__file__).parent
WITH_EXAMPLES = sorted(p for p in PACKAGE.rglob("*.py") if "\n        >>> " in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_examples(path: Path) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(
        ".".join(["vmamba", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    )
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_there_are_examples() -> None:
    """For what newcomers call first."""
    assert len(WITH_EXAMPLES) >= 14


def test_everything_public_is_documented() -> None:
    """What ``__all__`` names, and the methods and properties that its classes define."""
    bare, seen = [], 0
    for path in PACKAGE.rglob("__init__.py"):
        name = ".".join(["vmamba", *path.parent.relative_to(PACKAGE).parts])
        if "standins" in path.parts or name.startswith("vmamba.integrations"):
            continue
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            thing = getattr(module, public)
            seen += 1
            if not inspect.getdoc(thing) and callable(thing):
                bare.append(f"{name}.{public}")
            if inspect.isclass(thing):
                bare += [
                    f"{name}.{public}.{member}" for member, value in vars(thing).items() if lacks(thing, member, value)
                ]
    assert bare == []
    assert seen > 60


def lacks(owner: type, member: str, value: object) -> bool:
    """A method or property that says nothing and overrides nothing."""
    if member.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
        return False
    return not inspect.getdoc(value) and not any(hasattr(base, member) for base in owner.__mro__[1:])
