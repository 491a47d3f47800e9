"""Masked pixels are hidden from the model, and they alone are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import vmamba
from vmamba.model.backbone import VMamba
from vmamba.tasks.pretraining.options import SimMIMOptions
from vmamba.tasks.pretraining.simmim import Grid, SimMIM, SimMIMPretrainer
from vmamba.tasks.pretraining.task import ViewBatch
from vmamba.tasks.protocol import Job

SMALL: dict[str, Any] = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}


@pytest.fixture
def task(tmp_path: Path) -> SimMIM:
    for i in range(4):
        Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    job = Job(data=str(tmp_path), model="vmamba_pico", model_options=SMALL)
    made = SimMIM(job, SimMIMOptions())
    made.setup()
    return made


def test_grid(task: SimMIM) -> None:
    """Six squares beside each other, or more; three fifths of them masked in every image, not the same ones."""
    assert task.grid == Grid(8, 8, 38)
    torch.manual_seed(0)
    mask = task.grid.random_mask(50)
    assert mask.shape == (50, 1, 16, 16)
    assert set(mask.sum((1, 2, 3)).tolist()) == {4 * 38}
    assert mask.float().mean(0).sub(38 / 64).abs().max() < 0.35
    cells = mask.unfold(2, 2, 2).unfold(3, 2, 2).float().mean((-1, -2))
    assert set(cells.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("stem", ["overlapping", "patchify"])
@pytest.mark.parametrize("pos_embed_size", [None, 64])
def test_masked_pixels_are_not_seen(stem: str, pos_embed_size: int | None) -> None:
    torch.manual_seed(0)
    backbone = vmamba.create_model("vmamba_pico", stem=stem, pos_embed_size=pos_embed_size, num_classes=0, **SMALL)
    model = SimMIMPretrainer(cast(VMamba, backbone))
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    mask = Grid(16, 4, 9).random_mask(2)
    predicted = model(images, mask)
    assert predicted.shape == images.shape
    predicted.square().sum().backward()
    assert images.grad is not None
    hidden = mask.repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(images)
    assert images.grad[hidden].abs().max() == 0
    assert images.grad[~hidden].abs().min() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_loss_is_the_mean_over_masked_pixels(task: SimMIM) -> None:
    images = torch.randn(3, 3, 64, 64)
    batch = ViewBatch(
        (images[None],), (torch.zeros(1, 3, 4),), torch.empty(3, 0), torch.full((3,), -1), ("a", "b", "c")
    )
    model = task.build_model()
    torch.manual_seed(4)
    loss = task.loss(model, batch)["loss"]
    torch.manual_seed(4)
    mask = task.grid.random_mask(3)
    hidden = mask.repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(images)
    expected = (model(images, mask) - images).abs()[hidden].mean()
    torch.testing.assert_close(loss, expected)
