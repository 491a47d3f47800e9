"""The error that freezing reports on images is that of the outputs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vmamba
from support.golden import relative_error
from vmamba import VMamba, VMambaConfig
from vmamba.checkpoints.info import ModelInfo, Preprocessing
from vmamba.data.images import read_image
from vmamba.errors import ImageError, OptionError
from vmamba.frozen import compare
from vmamba.frozen.comparison import batches
from vmamba.tasks.classification.prediction import eval_transform
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.inference import Inference, as_tensor
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

SMALL = VMambaConfig(num_classes=5, dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))
MODELS = {
    "classifier": lambda: VMamba(SMALL),
    "segmenter": lambda: UperNet(UperNetConfig(SMALL, ("a", "b"), channels=16, auxiliary_channels=8)),
    "detector": lambda: MaskRCNN(MaskRCNNConfig(SMALL, ("a",), channels=16, box_channels=16, mask_channels=16)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for i in range(3):
        pixels = random.integers(0, 256, (80 + i, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_error_is_that_of_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    model: Any = MODELS[name]().eval()
    images = torch.randn(18, 3, 64, 64)
    frozen: Any = vmamba.freeze(model, "int8", images=images)
    expected, got = (m.features(images) if name == "detector" else [m(images)] for m in (model, frozen))
    flat = [torch.cat([t.flatten(1) for t in maps], 1) for maps in (expected, got)]
    of_each = [relative_error(g, e) for e, g in zip(*flat, strict=True)]
    text = f"relative error of the {'maps' if name == 'detector' else 'logits'} {relative_error(*flat[::-1]):.1e}"
    assert f"\non 18 images: {text}, at worst {max(of_each):.1e}" in str(frozen)
    found = compare(model, frozen, images.split(7))
    assert found.images == 18
    assert found.worst == pytest.approx(max(of_each), rel=1e-3)
    if name == "detector":
        assert found.agreement is None
        return
    same = (expected[0].argmax(1) == got[0].argmax(1)).float().mean().item()
    assert found.agreement == pytest.approx(same)
    assert f"{same:.2%} of {'pixels' if name == 'segmenter' else 'top-1'} classes the same" in str(frozen)
    assert str(pickle.loads(pickle.dumps(frozen))) == str(frozen)


def test_classes_that_differ_are_counted() -> None:
    one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        one.weight.copy_(torch.eye(2))
        other.weight.copy_(torch.eye(2).flip(0))
    found = compare(one, other, torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0], [0.0, 1.0]]))
    assert found.agreement == 0.25
    assert found.relative_error == pytest.approx((22 / 19) ** 0.5)  # of squares 2, 18, 0, 2 to 1, 9, 8, 1
    assert found.worst == pytest.approx(2**0.5)


def test_a_folder_is_read_as_for_prediction(folder: Path) -> None:
    model: Any = VMamba(SMALL).eval()
    model.pretrained_cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0, "mean": (0.1, 0.2, 0.3)}
    read, paths = list(batches(model, folder)), sorted(folder.glob("*.png"))
    expected = [eval_transform(model)(read_image(path)) for path in paths]
    assert all(torch.equal(x[0], e) for x, e in zip(read, expected, strict=True))
    assert "on 3 images: " in str(vmamba.freeze(model, "int8", images=folder))


def test_a_folder_is_read_as_for_segmentation(folder: Path) -> None:
    model: Any = MODELS["segmenter"]().eval()
    settings = Preprocessing(image_size=64, max_size=70, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    model.info = ModelInfo(task="segmentation", preprocessing=settings)
    for x, path in zip(batches(model, str(folder)), sorted(folder.glob("*.png")), strict=True):
        expected: Tensor = next(Inference.of(settings).inputs(as_tensor(read_image(path))))
        assert torch.equal(x, expected)


def test_errors(folder: Path, tmp_path: Path) -> None:
    model = VMamba(SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in the folder"):
        vmamba.freeze(model, images=tmp_path / "empty")
    with pytest.raises(OptionError, match="there are no images to compare"):
        vmamba.freeze(model, images=[])
    vmamba.freeze(model.train(), images=torch.randn(1, 3, 64, 64))
    assert model.training
