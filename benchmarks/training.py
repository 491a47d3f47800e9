"""What the training engine costs beside a bare loop, and whether the loader keeps the model busy.

    python benchmarks/training.py

Writes ``results/training.csv`` and prints the table for ``results/training.md``. About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from paired import RESULTS, alternate, environment, write_csv
from PIL import Image
from timm.utils import ModelEmaV3
from torch import nn

from vmamba.tasks.classification.task import Classification, ImageBatch
from vmamba.training.distributed import Processes
from vmamba.training.interruption import StopRequests
from vmamba.training.loop import Run, job_of, train
from vmamba.training.optimizer import build_optimizer, build_schedule
from vmamba.training.recipe_files import load_recipe
from vmamba.training.run_folder import RunFolder
from vmamba.training.trainer import Trainer
from vmamba.zoo import create_model

STEPS, BATCH, SIZE, CLASSES = 10, 32, 64, 10
CPU = torch.device("cpu")


class InMemory:
    """A loader that costs nothing: the same few batches again and again."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.skipped: list[str] = []
        self.held = [
            ImageBatch(
                torch.randn(BATCH, 3, SIZE, SIZE, generator=generator),
                torch.randint(CLASSES, (BATCH,), generator=generator),
                ("",) * BATCH,
            )
            for _ in range(STEPS)
        ]

    def __len__(self) -> int:
        return STEPS

    def batches(self, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        yield from self.held[start:]


def write_photographs(root: Path, count: int) -> None:
    """JPEG files of 320×240 pixels in ten classes, smooth noise."""
    generator = np.random.default_rng(0)
    for i in range(count):
        split, number = ("val", i // 11) if i % 11 == 10 else ("train", i)
        folder = root / split / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=85)


def overhead(folder: Path, rounds: int) -> dict[str, object]:
    """The engine's steps and those of a bare loop, in turns; model, optimiser, average and batches are alike."""
    data = folder / "few"
    write_photographs(data, 400)
    overrides = {"data": str(data), "model": "vmamba_pico", "batch_size": BATCH, "image_size": SIZE, "workers": 0}
    recipe = load_recipe("scratch", {**overrides, "num_classes": CLASSES, "epochs": 10_000})
    trainer = Trainer(Classification(job_of(recipe, Processes(CPU)), recipe.options), recipe, Processes(CPU))
    trainer.train_loader, trainer.steps_per_epoch = InMemory(), STEPS
    run_folder = RunFolder(folder / "run", recipe.keep)
    run_folder.path.mkdir()
    run = Run(trainer, run_folder, StopRequests())
    trainer.start()

    model = create_model("vmamba_pico", num_classes=CLASSES, **recipe.model_options).train()
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, STEPS)
    average = ModelEmaV3(model, decay=0.998, use_warmup=True)
    held, step = InMemory().held, 0

    def engine() -> None:
        trainer.position.step_in_epoch = 0
        run._epoch()

    def bare() -> None:
        nonlocal step
        for batch in held:
            schedule.step_update(step)
            loss = nn.functional.cross_entropy(model(batch.images), batch.labels, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model, step=step)
            step += 1

    times = alternate({"bare loop": bare, "engine": engine}, rounds)
    ratio = times["engine"].median / times["bare loop"].median - 1
    milliseconds = {
        name: f"{1e3 * t.median / STEPS:.1f} ({1e3 * t.low / STEPS:.1f}–{1e3 * t.high / STEPS:.1f})"
        for name, t in times.items()
    }
    return {"what": "step, ms: median (quartiles)", **milliseconds, "overhead": f"{ratio:.1%}"}


def waiting(folder: Path, workers: int) -> dict[str, object]:
    """Share of an epoch's time that the model waits for images, read and augmented from JPEG files."""
    data = folder / "photographs"
    if not data.exists():
        write_photographs(data, 800)
    overrides = {"data": str(data), "model": "vmamba_pico", "image_size": 96, "workers": workers, "epochs": 2}
    recipe = load_recipe("scratch", {**overrides, "warmup_epochs": 0, "auto_augment": "rand-m9-mstd0.5-inc1"})
    output = folder / f"workers{workers}"
    train(recipe, output, Processes(CPU))
    with (output / "steps.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    rate, share = float(last["images_per_second"]), float(last["data_wait"])
    return {"what": f"loader, {workers} workers", "images/s": f"{rate:.0f}", "waiting": f"{share:.1%}"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [overhead(folder, options.rounds), *(waiting(folder, workers) for workers in (0, 1, 2))]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    complete: list[dict[str, object]] = [{column: row.get(column, "") for column in columns} for row in rows]
    write_csv(RESULTS / "training.csv", complete, environment())
    for row in rows:
        print(" · ".join(f"{key}: {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
