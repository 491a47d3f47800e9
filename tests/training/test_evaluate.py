"""``vmamba evaluate``: what it counts, against a plain loop; several sizes; several processes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import vmamba
from support.runs import CLASSES, VALIDATION, read_rows
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.data.images import read_image
from vmamba.tasks.classification.accuracy import Accuracy
from vmamba.tasks.classification.prediction import eval_transform

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=4)
    model.head.fc.weight.data.mul_(20)
    return save_weights(model, tmp_path_factory.mktemp("weights") / "model.safetensors")


def evaluate(*arguments: object) -> int:
    return main([str(a) for a in ("evaluate", "--device", "cpu", "--workers", 0, *arguments)])


def test_sizes(images: Path, weights: Path, tmp_path: Path) -> None:
    """Accuracy and loss at two sizes are those of a plain loop over the files."""
    output = tmp_path / "out"
    assert evaluate("--data", images, "--checkpoint", weights, "--image-size", 32, 64, "--output", output) == 0
    model = vmamba.create_model("vmamba_pico", num_classes=4, checkpoint=weights).eval()
    rows = read_rows(output / "results.csv")
    assert [int(row["image_size"]) for row in rows] == [32, 64]
    for row in rows:
        transform = eval_transform(model, int(row["image_size"]))
        paths = [(p, i) for i, name in enumerate(CLASSES) for p in sorted((images / "val" / name).iterdir())]
        with torch.inference_mode():
            logits = torch.cat([model(transform(read_image(p))[None]) for p, _ in paths])
        truth = torch.tensor([i for _, i in paths])
        assert float(row["loss"]) == pytest.approx(float(F.cross_entropy(logits, truth)), rel=1e-4)
        assert float(row["top1"]) == pytest.approx(100 * float((logits.argmax(1) == truth).float().mean()))
        assert float(row["top5"]) == 100
        assert float(row["images"]) == len(CLASSES) * VALIDATION
        assert float(row["images_per_second"]) > 0
        confusion = list(csv.reader((output / row["image_size"] / "confusion.csv").read_text().splitlines()))
        for i, name in enumerate(CLASSES):
            guesses = logits.argmax(1)[truth == i].bincount(minlength=4)
            assert confusion[i + 1] == [name, *map(str, guesses.tolist())]
        recall = {r["class"]: r["recall_percent"] for r in read_all(output / row["image_size"] / "per_class.csv")}
        right = (logits.argmax(1) == truth)[truth == 0].float().mean()
        assert float(recall["blue"]) == pytest.approx(100 * float(right))
    assert (output / "sizes.png").stat().st_size > 5_000
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"<td>{float(rows[0]['top1']):.4g}</td>" in page
    assert "top-1" in page
    # For both sizes mistakes and confusion, and the sizes beside each other.
    assert page.count("data:image/png") == 5


def test_json(images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the rows of the table and nothing else; what was left out is said elsewhere."""
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data/val/blue/00.png").write_bytes(b"")
    arguments = ["--data", tmp_path / "data", "--checkpoint", weights, "--output", tmp_path / "out", "--json"]
    assert evaluate(*arguments, "--image-size", 32, 64) == 0
    streams = capsys.readouterr()
    rows = json.loads(streams.out)
    table = read_rows(tmp_path / "out" / "results.csv")
    assert [{name: float(value) for name, value in row.items()} for row in table] == rows
    assert [row["images"] for row in rows] == [len(CLASSES) * VALIDATION - 1] * 2
    assert streams.err.startswith("vmamba: 1 images could not be read and were left out; see ")


def read_all(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_two_processes_count_every_image_once(images: Path, weights: Path, tmp_path: Path) -> None:
    """15 images over two processes."""
    data = tmp_path / "val"
    for i, path in enumerate(sorted((images / "val").rglob("*.png"))[:-1]):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        (data / path.parent.name / f"{i}.png").write_bytes(path.read_bytes())
    arguments = ["--data", data, "--checkpoint", weights, "--image-size", 32, "--batch-size", 4]
    assert evaluate(*arguments, "--output", tmp_path / "one") == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vmamba"]
    command = [*launcher, "evaluate", *map(str, arguments), "--device", "cpu", "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "two")], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (one,), (two,) = (read_rows(tmp_path / name / "results.csv") for name in ("one", "two"))
    assert float(one["images"]) == float(two["images"]) == 15
    assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-5)
    for name in ("confusion.csv", "per_class.csv"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    mistakes = [
        {(row["truth"], row["prediction"]) for row in read_all(tmp_path / name / "mistakes.csv")}
        for name in ("one", "two")
    ]
    assert mistakes[0] == mistakes[1]


def test_accuracy_by_hand() -> None:
    accuracy = Accuracy(6)
    logits = torch.eye(6)[[0, 1, 2, 2]] + 0.1 * torch.arange(6)
    accuracy.add(logits, torch.tensor([0, 1, 2, 0]))
    results = accuracy.results()
    assert results["top1"] == 75
    assert results["top5"] == 75  # 0 is the least likely of six for an image taken for 2
    assert accuracy.confusion[0].tolist() == [1, 0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="no image"):
        Accuracy(3).results()


def test_bad_input(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seven = save_weights(vmamba.create_model("vmamba_pico", num_classes=7), tmp_path / "seven.safetensors")
    assert evaluate("--data", images, "--checkpoint", seven) == 2
    assert "its classifier has 7 classes, the data 4" in capsys.readouterr().err
    assert evaluate("--data", tmp_path / "none", "--checkpoint", seven) == 2
    assert "no such folder" in capsys.readouterr().err
    assert evaluate("--data", tmp_path / "none", "--checkpoint", tmp_path / "none.pth") == 2
    assert "none.pth: No such file or directory; check the spelling" in capsys.readouterr().err
    assert evaluate("--data", images, "--checkpoint", seven, "--ema") == 2
    assert "has no 'model_ema' weights" in capsys.readouterr().err
    assert evaluate("--data", images, "--pretrained") == 2
    assert "--pretrained needs --model NAME" in capsys.readouterr().err
