"""Pre-training without labels is worth something: on digits, in little time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vmamba.demo import write_digits
from vmamba.studies.features import TRAINED, UNTRAINED, extract, untrained
from vmamba.studies.probing import probe, summary
from vmamba.tasks.classification.options import ClassificationOptions
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import Job
from vmamba.training.distributed import Processes
from vmamba.training.loop import train
from vmamba.training.recipe_files import load_recipe
from vmamba.zoo import model_from_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

#: As `benchmarks/pretraining.py`, but for a sixth of the epochs.
SETTINGS = {
    "model": "vmamba_pico", "workers": 0, "epochs": 3, "validate_every": 3, "image_size": 32, "batch_size": 32,
    "color_jitter": 0.0, "global_scale": [0.4, 1.0], "local_scale": [0.4, 1.0], "embedding": 16, "sigreg_weight": 0.1,
}  # fmt: skip


def test_digits(tmp_path: Path) -> None:
    """After three epochs the linear probe on 9 labels a class gains; `benchmarks/results` has what longer runs gain."""
    data = str(write_digits(tmp_path / "digits"))
    train(load_recipe("pretrain/lejepa", {**SETTINGS, "data": data}), tmp_path / "run", Processes(torch.device("cpu")))
    weights = tmp_path / "run" / "weights" / "model.safetensors"
    task = Classification(Job(data=data, checkpoint=str(weights), batch_size=64, workers=0), ClassificationOptions())
    task.setup()
    model = model_from_checkpoint(weights).eval()
    models = {TRAINED: model, UNTRAINED: untrained(model)}
    known, unknown = (extract(models, task.evaluation_loader(split), split) for split in ("train", "val"))
    rows = {row["features"]: float(str(row["accuracy"])) for row in summary(
        [score for score in probe(known, unknown, [9]) if score.probe == "linear"]
    )}  # fmt: skip
    assert rows[TRAINED] > rows[UNTRAINED] + 2
