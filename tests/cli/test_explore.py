"""``vmamba explore``: what it refuses. The page itself is in ``tests/explorer``."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.commands import Fails
from vmamba.errors import DownloadError
from vmamba.explorer.runtime import write_files


def test_npm_is_asked_for_in_one_line(
    fails: Fails, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    line = fails("explore", "--checkpoint", weights, "--output", tmp_path / "site")
    assert line.endswith("npm is not installed; install it with: pip install 'vmamba[explorer]'")


def test_only_classifiers(fails: Fails, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.cli.explore.write_runtime", lambda _: None)
    assert "it is for 'vmamba detect'" in fails("explore", "--checkpoint", detector, "--output", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_another_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package.tgz").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="is not the onnxruntime-web@"):
        write_files(tmp_path / "package.tgz", tmp_path)
