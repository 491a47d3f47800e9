"""The libraries of operators, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmamba.errors import ExportError
from vmamba.ops.backends import unavailable
from vmamba.ops.libraries import RUNTIMES, library_path

pytestmark = pytest.mark.skipif(unavailable("native") is not None, reason="the C++ kernels are not built")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_missing_and_of_another_build(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(library_path(runtime)).is_file()
    monkeypatch.setattr("vmamba.ops.backends.native.LIBRARIES", tmp_path)
    with pytest.raises(ExportError, match=f"no operators for {RUNTIMES[runtime]} in .*; reinstall vmamba"):
        library_path(runtime)
    (tmp_path / f"libvmamba_{runtime}.so").write_bytes(b"of an earlier build")
    with pytest.raises(
        ExportError, match=rf"libvmamba_{runtime}\.so: operators of another version of vmamba; reinstall"
    ):
        library_path(runtime)
