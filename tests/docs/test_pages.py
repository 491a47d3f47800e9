"""Every page of the documentation: its fenced commands and programs, run as they stand, in order, in one folder.

What a page shows that only its reader can run (the network, torchrun, hours) is indented there, not fenced.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.zoo import create_model

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
#: Pages with a test of their own, for results of theirs.
TESTED = {
    "finetune": "training/test_tutorial.py",
    "inference": "frozen/test_freeze.py",
    "layers": "layers/test_unet_page.py",
    "orders": "analysis/test_draw_orders.py",
    "compat": "compat",
}
#: Less of what takes long.
SHORTENED = {
    "vmamba shapes": ["--train", "8", "--val", "4"],
    "vmamba train": ["--epochs", "2", "--batch-size", "4"],
    "vmamba train --data demo": ["--epochs", "1", "--batch-size", "64", "--set", "warmup_epochs=0"],
}
#: Files of the authors, and images, that only the reader has.
READERS = re.compile(r"\S+\.pth|\bphotos/ |scan\.png|slide\.tif")


def blocks(page: str) -> list[tuple[str, str]]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```(sh|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def pages() -> list[str]:
    found = [str(path.relative_to(DOCS).with_suffix("")) for path in sorted(DOCS.rglob("*.md"))]
    return [page for page in found if blocks(page) and page not in TESTED]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages take for granted: a few photographs in class folders, and a classifier of their two classes."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(place / f"{i}.png")
    shutil.copytree(tmp_path / "photos", tmp_path / "labelled")
    weights = tmp_path / "runs" / "photos" / "weights" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    model = create_model("vmamba_pico", num_classes=2)
    save_weights(model, weights, class_names=("cat", "dog"), preprocessing=Preprocessing(image_size=64))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", pages())
def test_page(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    namespace = {"model": create_model("vmamba_tiny_s1l8").eval(), "image": torch.rand(1, 3, 224, 224)}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"docs/{page}.md", "exec"), namespace)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "vmamba", line
            capsys.readouterr()
            if READERS.search(f"{line} "):
                assert main(arguments) == 2, line
                assert re.search("no such file|matches nothing|no annotations", capsys.readouterr().err), line
            else:
                more = [word for start, words in SHORTENED.items() if line.startswith(start) for word in words]
                assert main(arguments + more) == 0, (line, capsys.readouterr().err)


def test_pages_with_tests_of_their_own() -> None:
    for page, test in TESTED.items():
        assert blocks(page)
        assert (DOCS.parent / "tests" / test).exists()
