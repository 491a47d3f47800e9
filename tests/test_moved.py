"""Import paths of the first release."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from vmamba._moved import MOVED

NAMES = [(module, name) for module, names in MOVED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_old_paths_give_the_same_with_a_warning(module: str, name: str) -> None:
    place = MOVED[module][name]
    with pytest.warns(DeprecationWarning, match=rf"^{module}\.{name} has moved to {place}; ") as caught:
        old = getattr(importlib.import_module(module), name)
    assert caught[0].filename == __file__
    assert old is getattr(importlib.import_module(place), name)


@pytest.mark.slow
def test_as_written_in_a_program() -> None:
    program = "import vmamba\nfrom vmamba.model.zoo import VARIANTS\nfrom vmamba.tasks.classification import predict\n"
    result = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert (
        "<string>:2: DeprecationWarning: vmamba.model.zoo.VARIANTS has moved to vmamba.model.variants" in result.stderr
    )
    assert "<string>:3: DeprecationWarning: vmamba.tasks.classification.predict has moved" in result.stderr


def test_names_that_never_were() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'nothing' from 'vmamba\.model\.zoo'"):
        exec("from vmamba.model.zoo import nothing")
    with pytest.raises(AttributeError, match=r"module 'vmamba\.tasks\.classification' has no attribute 'nothing'"):
        importlib.import_module("vmamba.tasks.classification").nothing  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match=r"vmamba\.model\.nothing"):
        importlib.import_module("vmamba.model.nothing")
