"""`constraints.txt`: a lock of everything that the package, its extras and its development need, all the way down."""

from __future__ import annotations

import importlib.metadata
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

packaging = pytest.importorskip("packaging")
from packaging.requirements import Requirement  # noqa: E402
from packaging.utils import canonicalize_name  # noqa: E402
from packaging.version import Version  # noqa: E402

ROOT = Path(__file__).parents[1]
#: At versions that torch names itself, all of them exactly.
BROUGHT_BY_TORCH = ("nvidia-", "cuda-", "triton")


def locked() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def needed(project: dict[str, Any]) -> dict[str, str]:
    """What is installed of the closure of all requirements, and its versions."""
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *chain(*project["dependency-groups"].values())]
    lines += chain(*(group for name, group in extras.items() if name not in ("all", "executorch")))
    to_see = [Requirement(line) for line in lines]
    seen: set[tuple[str, str]] = set()
    found: dict[str, str] = {}
    while to_see:
        requirement = to_see.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen or name == "vmamba":
                continue
            seen.add((name, extra))
            try:
                distribution = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            found[name] = distribution.version
            of_it = [Requirement(line) for line in distribution.requires or []]
            to_see += [r for r in of_it if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the lock is that of Python 3.11")
def test_everything_is_locked() -> None:
    tomllib = pytest.importorskip("tomllib")
    found = needed(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    pins = locked()
    if found["torch"] != pins["torch"]:
        pytest.skip("this environment was not made from the lock")
    missing = {name for name in found if name not in pins and not name.startswith(BROUGHT_BY_TORCH)}
    assert len(found) > 100
    assert not missing
    both = found.keys() & pins.keys()
    assert {name for name in both if Version(found[name]) != Version(pins[name])} == set()
