"""The digest that stands for the kernels in the compilers' caches."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from vmamba.ops.backends.triton import sources


def test_the_digest_changes_with_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    digests = [sources.digest(tmp_path)]
    (tmp_path / "a.py").write_text("x = 2\n")
    digests.append(sources.digest(tmp_path))
    (tmp_path / "b.py").write_text("")
    digests.append(sources.digest(tmp_path))
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    digests.append(sources.digest(tmp_path))
    assert len(set(digests)) == 4
    assert sources.digest(Path(sources.__file__).parent) == sources.SOURCES
