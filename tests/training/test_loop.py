"""What the loop computes: losses go to zero, options that save memory or time change nothing."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from support.runs import STEPS, last_state, losses, read_rows, tensors
from vmamba.checkpoints.info import Preprocessing, read_info
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.model.config import CHOICES
from vmamba.tasks.classification.options import ClassificationOptions
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import Job
from vmamba.zoo import create_model

pytestmark = pytest.mark.slow

Train = Callable[..., int]
PLAIN: tuple[str, ...] = (
    "mixup=0",
    "cutmix=0",
    "label_smoothing=0",
    "auto_augment=null",
    "random_erasing=0",
    "crop_scale=[1, 1]",
)
PLAIN += ("crop_ratio=[1, 1]", "hflip=0", "color_jitter=0")


@pytest.mark.parametrize("scan", CHOICES["scan"])
def test_one_batch_is_learnt_by_heart(train: Train, images: Path, tmp_path: Path, scan: str) -> None:
    """Eight images with classes that say nothing about them."""
    for i, path in enumerate(sorted((images / "train" / "grey").glob("*.png"))[:8]):
        for split in ("train", "val"):
            folder = tmp_path / "images" / split / "abcd"[i % 4]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)
    model = f"model_options={{dims: [8, 16, 24, 32], depths: [1, 1, 1, 1], scan: {scan}}}"
    options = (
        "--epochs",
        60,
        "--lr",
        "1e-2",
        "--set",
        "weight_decay=0",
        "ema=null",
        "validate_every=50",
        *PLAIN,
        model,
    )
    assert train(tmp_path / "run", *options, data=tmp_path / "images") == 0
    assert losses(tmp_path / "run")[0] > 1
    assert losses(tmp_path / "run")[-1] < 0.01


def test_accumulation_and_checkpointing_change_nothing(train: Train, tmp_path: Path) -> None:
    """Four passes of two images are one of eight; activations computed twice are the same."""
    same = (
        "--epochs",
        2,
        "--set",
        "mixup=0",
        "cutmix=0",
        "model_options={dims: [8, 16, 24, 32], depths: [1, 1, 1, 1]}",
    )
    assert train(tmp_path / "plain", *same) == 0
    assert train(tmp_path / "split", *same, "grad_accum_steps=4") == 0
    assert train(tmp_path / "again", *same, "grad_checkpointing=true") == 0
    for other in ("split", "again"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(train: Train, tmp_path: Path, precision: str) -> None:
    """Finite and falling; the scaler of float16 is part of the state."""
    assert (
        train(tmp_path / "run", "--lr", "5e-3", "--epochs", 2, "--set", f"precision={precision}", "mixup=0", "cutmix=0")
        == 0
    )
    found = losses(tmp_path / "run")
    assert all(0 < loss < 5 for loss in found)
    assert sum(found[-4:]) < sum(found[:4])
    assert bool(last_state(tmp_path / "run")["scaler"]) == (precision == "float16")
    assert {t.dtype for t in tensors(last_state(tmp_path / "run")["model"]).values()} == {torch.float32}


def test_compiled(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled model is what is trained (traced here, not lowered, which takes minutes)."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: compile_module(m, backend="eager"))
    same = (
        "--epochs",
        1,
        "--set",
        "warmup_epochs=0",
        "ema=null",
        "mixup=0",
        "cutmix=0",
        "model_options={dims: [8, 16], depths: [1, 1]}",
    )
    assert train(tmp_path / "plain", *same) == 0
    assert train(tmp_path / "compiled", *same, "compile=true") == 0
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_what_a_run_leaves(train: Train, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The early answer, tables, curves, TensorBoard, and weights that predict and evaluate to the same accuracy."""
    output = tmp_path / "run"
    assert train(output, "--lr", "5e-3", "--set", "keep=1", "mixup=0", "cutmix=0") == 0
    printed = capsys.readouterr().out
    assert re.search(r"red +│ +16 │ +4 ", printed)  # images of each class in each split
    told = [line for line in printed.splitlines() if line.startswith("epoch")]
    assert told[0].startswith("epoch 1/3 · top-1: weights ")
    assert "images/s" in told[0]
    assert "waiting for data" in told[0]
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == [
        "best.pt",
        f"step_{3 * STEPS:08d}.pt",
        "validated.json",
    ]
    assert (output / "curves.png").stat().st_size > 10_000
    assert list((output / "tensorboard").iterdir())
    steps = read_rows(output / "steps.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, 3 * STEPS + 1))
    assert all(0 <= float(row["data_wait"]) <= 1 for row in steps)

    rows = read_rows(output / "epochs.csv")
    best = max(float(row[name]) for row in rows for name in ("top1", "ema_top1"))
    weights = output / "weights" / "model.safetensors"
    assert (output / "weights" / "labels.txt").read_text().split() == ["blue", "green", "grey", "red"]
    info = read_info(weights)
    assert info is not None
    assert info.class_names == ("blue", "green", "grey", "red")
    assert info.preprocessing == Preprocessing(image_size=32)
    assert info.training["results"]["top1"] == pytest.approx(best)
    assert (info.training["model"], info.training["epochs"], info.training["lr"]) == ("vmamba_pico", 3, 5e-3)
    command = ["evaluate", "--data", images, "--checkpoint", weights, "--output", tmp_path / "eval"]
    assert main([str(a) for a in (*command, "--device", "cpu", "--workers", 0)]) == 0
    (found,) = read_rows(tmp_path / "eval" / "results.csv")
    assert float(found["top1"]) == pytest.approx(best)
    command = ["predict", images / "val", "--checkpoint", weights, "--labels", output / "weights" / "labels.txt"]
    assert main([str(a) for a in (*command, "--image-size", 32)]) == 0


def test_weights_bring_their_preprocessing(images: Path, tmp_path: Path) -> None:
    """Fine-tuned or continued, they see images as they are used to; the recipe has the last word on the size."""
    model = create_model("vmamba_pico", num_classes=4)
    usual = Preprocessing(64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2), interpolation="bilinear", crop_pct=0.95)
    path = str(save_weights(model, tmp_path / "weights.safetensors", preprocessing=usual))

    def preprocessing(**options: Any) -> Preprocessing:
        task = Classification(Job(data=str(images), checkpoint=path), ClassificationOptions(**options))
        task.setup()
        (image,) = task.eval_transform()(Image.new("RGB", (90, 80), (102, 102, 102)))[None]
        assert image.shape == (3, task.image_size, task.image_size)
        assert image.mean((1, 2)).tolist() == pytest.approx([0, -1 / 3, -1], abs=1e-5)
        return task.preprocessing

    assert preprocessing(keep_head=True) == usual
    assert preprocessing(keep_head=True, image_size=32) == dataclasses.replace(usual, image_size=32)
    assert preprocessing() == dataclasses.replace(usual, interpolation="bicubic", crop_pct=0.875)
