"""Receptive fields whose answer is known."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vmamba import VMamba, VMambaConfig
from vmamba.analysis import receptive_field


def test_a_single_convolution() -> None:
    """The field is the kernel itself, around the centre."""
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    field = receptive_field(convolution, [torch.randn(2, 3, 9, 12), torch.randn(1, 3, 9, 12)])
    expected = torch.zeros(9, 12, dtype=torch.float64)
    expected[3:6, 5:8] = convolution.weight.detach().double().sum(0).abs().sum(0)
    torch.testing.assert_close(field.energy, expected, rtol=1e-5, atol=1e-7)
    assert field.images == 3
    assert field.pixels_holding(1.0) == 9 / (9 * 12)


def test_a_global_average() -> None:
    """Every pixel counts alike, so the share of the pixels is the share of the energy."""
    field = receptive_field(nn.AdaptiveAvgPool2d(1), [torch.randn(1, 3, 10, 10)])
    torch.testing.assert_close(field.energy, torch.full((10, 10), 3 / 100, dtype=torch.float64))
    for share in (0.2, 0.5, 0.9):
        assert field.pixels_holding(share) == pytest.approx(share)


def test_no_energy() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    assert receptive_field(Nothing(), [torch.randn(1, 1, 4, 4)]).pixels_holding(0.5) == 0


@pytest.mark.parametrize("scan", ["cross", "unidirectional"])
def test_one_route_sees_what_came_before_and_four_see_all(scan: str) -> None:
    torch.manual_seed(0)
    config = VMambaConfig(
        num_classes=2, dims=(8,), depths=(1,), ssm_conv=0, stem="patchify", scan=scan, ssm_init="rand", mlp_ratio=0
    )
    model = VMamba(config).train()
    tokens = receptive_field(model, [torch.randn(2, 3, 32, 32)]).energy.unfold(0, 4, 4).unfold(1, 4, 4).sum((2, 3))
    before = torch.arange(64).view(8, 8) <= 4 * 8 + 4
    assert (tokens[before] > 0).all()
    assert (tokens[~before] > 0).all() == (scan == "cross")
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_patch16_224", "convnext_atto"])
def test_models_of_timm(name: str) -> None:
    field = receptive_field(timm.create_model(name), [torch.randn(1, 3, 224, 224)])
    assert field.energy.shape == (224, 224)
    assert 0 < field.pixels_holding(0.5) < 1


def test_what_is_not_a_map() -> None:
    with pytest.raises(ValueError, match=r"Linear returns shape \(1, 3, 4\), not a map"):
        receptive_field(nn.Linear(5, 4), [torch.randn(1, 3, 5)])
    with pytest.raises(ValueError, match="at least one image"):
        receptive_field(nn.Identity(), [])
