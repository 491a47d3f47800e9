"""``vmamba demo``."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from support.commands import Run

pytestmark = pytest.mark.slow


def test_demo_trains_saves_reloads_and_draws(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One epoch only; `make demo` runs all of them and must reach 98 %."""
    assert run("demo", "--output", tmp_path / "demo", "--epochs", 1) == 0
    out = capsys.readouterr().out
    assert "accuracy on 360 held-out digits: " in out
    assert f"vmamba predict {tmp_path / 'demo' / 'images'}" in out.replace("\n", "")
    for name in ("predictions.png", "sheet.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            assert min(picture.size) > 500
    assert list((tmp_path / "demo" / "attention").glob("*.png"))
    assert "To try next:" in out
    assert len(list((tmp_path / "demo" / "images").glob("*.png"))) == 24

    assert run("demo", "--output", tmp_path / "demo", "--epochs", 1) == 0  # finished: shown again
    again = capsys.readouterr().out
    assert "epoch 1/1" not in again
    assert out.split("accuracy on")[1].split("\n\n")[0] == again.split("accuracy on")[1].split("\n\n")[0]
