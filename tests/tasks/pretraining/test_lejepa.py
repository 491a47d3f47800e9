"""LeJEPA of points: what is embedded, and the loss of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vmamba
from vmamba.data.views import common_points
from vmamba.model.backbone import VMamba
from vmamba.tasks.pretraining.lejepa import LeJEPA, LeJEPAPretrainer
from vmamba.tasks.pretraining.options import LeJEPAOptions
from vmamba.tasks.pretraining.sigreg import invariance, random_directions, sigreg
from vmamba.tasks.pretraining.task import ViewBatch
from vmamba.tasks.protocol import Job
from vmamba.training.distributed import Processes
from vmamba.training.loop import train
from vmamba.training.recipe_files import load_recipe
from vmamba.zoo import model_from_checkpoint

SMALL: dict[str, Any] = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
DENSE: dict[str, Any] = {"points": 3, "hidden": 32, "embedding": 16, "directions": 64}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(generator.integers(0, 256, (50, 80, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def backbone() -> VMamba:
    torch.manual_seed(0)
    return cast(VMamba, vmamba.create_model("vmamba_pico", num_classes=0, **SMALL).eval())


def test_points_are_embedded_from_all_maps() -> None:
    """At the centres of the tokens of the last map the features are these tokens; each map has its own part."""
    model = LeJEPAPretrainer(backbone(), 32, 16, dense=True).eval()
    images = torch.randn(2, 3, 64, 64)
    last = model.backbone.forward_features(images)  # (2, 32, 2, 2), normalised
    places = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]).expand(2, 4, 2)
    features = model.features_at(images, places).unflatten(0, (2, 4))
    torch.testing.assert_close(features[..., 48:], last.flatten(2).transpose(1, 2))
    maps = cast(Any, model.backbone).forward_intermediates(images, intermediates_only=True)
    first = nn.functional.layer_norm(maps[0].permute(0, 2, 3, 1), (8,))
    corner = (first[:, 3:5, 3:5].sum((1, 2))) / 4  # -0.5 is between the fourth and the fifth of sixteen tokens
    torch.testing.assert_close(features[:, 0, :8], corner)


def test_views_of_several_sizes_keep_their_order() -> None:
    model = LeJEPAPretrainer(backbone(), 32, 16, dense=True).eval()
    kinds = [torch.randn(2, 3, 3, 64, 64), torch.randn(1, 3, 3, 32, 32)]
    places = [2 * torch.rand(len(views), 3, 5, 2) - 1 for views in kinds]
    with torch.no_grad():
        embedded = model(kinds, places)
        assert embedded.shape == (3, 15, 16)
        features = [model.features_at(v, p) for views, where in zip(kinds, places) for v, p in zip(views, where)]  # noqa: B905
        moments = [model.projector(torch.cat(features[:2])).unflatten(0, (2, 15)), model.projector(features[2])[None]]
    torch.testing.assert_close(embedded, torch.cat(moments))


def test_loss_takes_every_point_for_an_image() -> None:
    task = LeJEPA(Job(data="", model="vmamba_pico", model_options=SMALL), LeJEPAOptions(**DENSE, local_views=0))
    model = task.build_pretrainer(backbone())
    views, boxes = torch.randn(2, 4, 3, 64, 64), torch.tensor([0.1, 0.2, 0.8, 0.9]).expand(2, 4, 4)
    batch = ViewBatch((views,), (boxes,), torch.empty(4, 0), torch.full((4,), -1), tuple("abcd"))
    torch.manual_seed(4)
    losses = task.loss(model, batch)
    torch.manual_seed(4)
    directions = random_directions(16, 64, torch.device("cpu"))
    embeddings = model([views], common_points([boxes], 3))
    assert embeddings.shape == (2, 12, 16)
    torch.testing.assert_close(losses["sigreg"], sigreg(embeddings, directions))
    torch.testing.assert_close(losses["invariance"], invariance(embeddings, 2))
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_a_run_leaves_a_backbone(images: Path, tmp_path: Path) -> None:
    """By the recipe; views of the same image, without changes, agree."""
    settings = {
        "data": str(images), "model": "vmamba_pico", "model_options": SMALL, "epochs": 2, "workers": 0, "batch_size": 8,
        "warmup_epochs": 1, "image_size": 64, "hidden": 32, "embedding": 16, "directions": 64, "points": 4,
    }  # fmt: skip
    train(load_recipe("pretrain/lejepa_dense", settings), tmp_path / "run", Processes(torch.device("cpu")))
    model = model_from_checkpoint(tmp_path / "run" / "weights" / "model.safetensors")
    assert isinstance(model, VMamba)
    assert model.num_classes == 0
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()
