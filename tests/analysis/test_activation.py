"""Activation maps whose answer is known."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import vmamba
from vmamba.analysis import class_activation, dependence_map, similarity_map


class Averaged(nn.Module):
    """Logit k is the average of channel k of a 1×1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1, bias=False)
        self.features.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).mean((2, 3))


def test_grad_cam_finds_where_the_evidence_is() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, 1, 2] = 5.0  # evidence for class 0
    image[0, 1, 6, 6] = 3.0  # and, less, for class 1
    for wanted, target, at in ((None, 0, (1, 2)), (1, 1, (6, 6))):
        found, label = class_activation(Averaged(), image, "features", wanted)
        assert label == target
        expected = torch.zeros(8, 8)
        expected[at] = 1.0
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layer", [None, "stages.1.blocks.0"])
def test_grad_cam_of_ours(layer: str | None) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=4).eval()
    found, label = class_activation(model, torch.randn(1, 3, 64, 96), layer)
    assert found.shape == (64, 96)
    assert 0 <= label < 4
    assert found.min() >= 0
    assert found.max() <= 1


def test_dependence_of_a_convolution_is_its_kernel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1))
    expected = torch.zeros(8, 9)
    expected[1:4, 4:7] = model[1].weight.detach().sum(0).abs().sum(0)
    torch.testing.assert_close(dependence_map(model, "1", torch.randn(1, 3, 8, 9), (2, 5)), expected)


def test_similarity() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0], image[0, 1, 2] = 1.0, 1.0
    found = similarity_map(nn.Sequential(nn.Identity()), "0", image, (0, 0))
    expected = torch.ones(4, 4)
    expected[2] = 2**-0.5
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layer", ["stages.2", "stages.2.blocks.1"])
def test_stage_and_block_depend_on_every_token(layer: str) -> None:
    model = vmamba.create_model("vmamba_pico").eval()
    image = torch.randn(1, 3, 64, 96)
    found = dependence_map(model, layer, image, (3, 5))
    assert found.shape == ((8, 12) if layer == "stages.2" else (4, 6))  # a stage starts with its downsampling
    assert (found > 0).all()
    assert similarity_map(model, layer, image, (3, 5))[3, 5] == pytest.approx(1)


@pytest.mark.parametrize(
    ("layer", "position", "message"),
    [
        ("stages.9", (0, 0), "no layer 'stages.9' in VMamba, which has stem, stages"),
        ("head", (0, 0), "'head' for one image is not a map"),
        ("stages.3", (2, 0), r"position \(2, 0\) is outside the map of 2×2"),
    ],
)
def test_wrong_arguments(layer: str, position: tuple[int, int], message: str) -> None:
    model = vmamba.create_model("vmamba_pico")
    with pytest.raises(ValueError, match=message):
        similarity_map(model, layer, torch.randn(1, 3, 64, 64), position)


def test_wrong_class_and_unknown_last_stage() -> None:
    with pytest.raises(ValueError, match="class 9 is not among the model's 2"):
        class_activation(Averaged(), torch.zeros(1, 3, 8, 8), "features", 9)
    with pytest.raises(ValueError, match="Averaged does not say which layer"):
        class_activation(Averaged(), torch.zeros(1, 3, 8, 8))


def test_models_of_timm() -> None:
    found, _ = class_activation(timm.create_model("resnet18").eval(), torch.randn(1, 3, 64, 64))
    assert found.shape == (64, 64)
