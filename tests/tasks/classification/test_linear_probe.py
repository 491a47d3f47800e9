"""Beginning with a fitted classifier: against scikit-learn, and as the option of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from support.runs import write_images
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import OptionError
from vmamba.tasks.classification.linear_probe import logistic_regression
from vmamba.tasks.classification.options import ClassificationOptions
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import Job
from vmamba.zoo import create_model

TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}


def test_regression_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 4, 60)
    x = generator.normal(size=(60, 5)) + np.eye(4, 5)[y]
    truth = LogisticRegression(tol=1e-10, max_iter=5000).fit(x, y)
    weight, bias = logistic_regression(torch.tensor(x), torch.tensor(y), 4)
    np.testing.assert_allclose(weight.numpy(), truth.coef_, atol=1e-4)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), truth.intercept_ - truth.intercept_.mean(), atol=1e-4)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Images of four colours, and weights to start from."""
    write_images(tmp_path / "images", "train", 3)
    write_images(tmp_path / "images", "val", 2)
    torch.manual_seed(0)
    save_weights(create_model("vmamba_pico", num_classes=0, **TINY), tmp_path / "model.safetensors")
    checkpoint = str(tmp_path / "model.safetensors")
    return Job(data=str(tmp_path / "images"), checkpoint=checkpoint, batch_size=4, workers=0)


def task(job: Job, **options: object) -> Classification:
    made = Classification(job, ClassificationOptions(image_size=32, **options))  # type: ignore[arg-type]
    made.setup()
    return made


@torch.no_grad()
def test_classifier_begins_as_a_linear_probe(job: Job) -> None:
    """Of images as in validation; every process fits it to all of them, and the rest of the model stays."""
    made = task(job.model_copy(update={"rank": 1, "world_size": 2}), head_first=True)
    model = made.build_model().eval()
    net: Any = model
    batches: list[Any] = list(task(job).evaluation_loader("train").batches(0))
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    assert len(labels) == 12

    def pooled(x: Tensor) -> Tensor:
        return net.forward_head(net.forward_features(x), pre_logits=True)

    scaler = StandardScaler().fit(pooled(images).numpy())
    truth = LogisticRegression(tol=1e-10, max_iter=5000).fit(scaler.transform(pooled(images).numpy()), labels)
    loader = task(job.model_copy(update={"batch_size": 8})).evaluation_loader("val")
    batch: Any = next(iter(loader.batches(0)))
    val = batch.images
    expected = truth.predict_proba(scaler.transform(pooled(val).numpy()))
    np.testing.assert_allclose(model(val).softmax(1).numpy(), expected, atol=1e-3)
    fresh = task(job).build_model().state_dict()
    different = [name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])]
    assert different == ["head.fc.weight", "head.fc.bias"]


def test_weights_are_needed(job: Job) -> None:
    without = job.model_copy(update={"checkpoint": None, "model": "vmamba_pico"})
    with pytest.raises(OptionError, match="head_first needs weights to start from"):
        task(without, head_first=True).build_model()
    task(without).build_model()
