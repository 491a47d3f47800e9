"""The count of multiply-adds against the paper's figures and a count by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import vmamba
from vmamba import VMamba, VMambaConfig
from vmamba.analysis import cost, load_model

#: Multiply-adds (10⁹, one image of 224×224) and parameters (10⁶) as the paper and its repository print them.
PUBLISHED = {
    "vanilla_vmamba_tiny": (5.6, 23),
    "vanilla_vmamba_small": (11.2, 44),
    "vanilla_vmamba_base": (18.0, 76),
    "vmamba_tiny_s2l5": (4.9, 31),
    "vmamba_small_s2l15": (8.7, 50),
    "vmamba_base_s2l15": (15.4, 89),
    "vmamba_tiny_s1l8": (4.9, 30),
    "vmamba_small_s1l20": (8.6, 49),
    "vmamba_base_s1l20": (15.2, 87),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_models_cost_what_the_paper_says(name: str) -> None:
    macs, parameters = PUBLISHED[name]
    whole = cost(load_model(name, device="meta"))[0]
    assert abs(whole.total_macs / 1e9 - macs) <= 0.06
    assert abs(whole.parameters / 1e6 - parameters) <= 0.5


def test_equal_to_a_count_by_hand() -> None:
    config = VMambaConfig(num_classes=10, dims=(16,), depths=(1,), d_state=3, ssm_ratio=2.0, dt_rank=5, mlp_ratio=4.0)
    layers = {layer.name: layer for layer in cost(VMamba(config), (32, 48))}
    tokens = 8 * 12  # of the stem's output; 16 × 24 after its first convolution
    C, D, N, R, K = 16, 32, 3, 5, 4
    stem = 4 * tokens * 8 * 3 * 9 + tokens * C * 8 * 9
    in_proj, conv, x_proj, out_proj = tokens * C * D, tokens * D * 9, tokens * D * K * (R + 2 * N), tokens * D * C
    scan = K * tokens * (9 * D * N + D + D * R)
    mlp = 2 * tokens * C * 4 * C
    norms = {"stem": 5 * (4 * tokens * 8 + tokens * C), "ss2d": 5 * tokens * D, "block": 2 * 5 * tokens * C}
    products = {
        "stem": stem,
        "stages.0.blocks.0.ss2d.in_proj": in_proj,
        "stages.0.blocks.0.ss2d.conv": conv,
        "stages.0.blocks.0.ss2d": in_proj + conv + x_proj + scan + out_proj,
        "stages.0.blocks.0.mlp": mlp,
    }
    for name, count in products.items():
        assert sum(layers[name].macs[kind] for kind in ("convolution", "matrix product", "scan")) == count, name
    total = stem + in_proj + conv + x_proj + scan + out_proj + mlp + C * 10
    total += sum(norms.values()) + 5 * tokens * C  # and the norm before the head
    assert layers[""].total_macs == total
    assert layers[""].macs["scan"] == scan
    # Two FLOPs per multiply-add of a product, 9·L·D·N + L·D for the scan, nothing for norms.
    plain = total - scan - layers[""].macs["normalisation"]
    assert layers[""].flops == 2 * plain + scan + K * tokens * D * R
    written = 4 * tokens * 8 + tokens * (C + D + D + K * (R + 2 * N) + D + C + 4 * C + C) + 10
    assert layers[""].activations == written


def test_same_on_any_device_and_for_any_mode() -> None:
    model = vmamba.create_model("vmamba_pico").train()
    real = cost(model, (64, 96))
    assert model.training
    assert real == cost(model.to("meta"), (64, 96))


def test_resolution_scales_the_scan_linearly() -> None:
    model = load_model("vmamba_pico", device="meta")
    assert cost(model, (448, 224))[0].macs["scan"] == 2 * cost(model)[0].macs["scan"]


def test_models_of_timm() -> None:
    """ResNet-50: 4.09 G multiply-adds of convolutions and the classifier, 2 more per element of its batch norms."""
    whole = cost(timm.create_model("resnet50"))[0]
    assert whole.macs["convolution"] == 4_087_136_256
    assert whole.macs["matrix product"] == 2048 * 1000
    norms = sum(
        m.num_features * s * s for m, s in _resolutions(timm.create_model("resnet50")) if isinstance(m, nn.BatchNorm2d)
    )
    assert whole.macs["normalisation"] == 2 * norms


def _resolutions(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Every module that gives out a map, and the side of the map."""
    seen: list[tuple[nn.Module, int]] = []
    for module in model.modules():
        module.register_forward_hook(lambda m, _, y: seen.append((m, y.shape[-1])))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    return seen


def test_an_image_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="VisionTransformer cannot take an image of"):
        cost(load_model("deit_tiny_patch16_224", device="meta"), (128, 128))
    assert cost(load_model("deit_tiny_patch16_224", image_size=(128, 128), device="meta"), (128, 128))[0].total_macs


def test_unknown_models_are_named() -> None:
    with pytest.raises(ValueError, match="unknown model 'resnet5'; do you mean 'resnet50'"):
        load_model("resnet5")
