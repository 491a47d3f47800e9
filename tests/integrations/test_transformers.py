"""VMamba as a backbone and a classifier of transformers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

import vmamba
from vmamba.integrations.transformers import (
    VMambaBackbone,
    VMambaConfig,
    VMambaForImageClassification,
    VMambaModel,
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def config(**options: Any) -> VMambaConfig:
    return VMambaConfig(dims=[8, 16, 32, 64], depths=[1, 1, 1, 1], **options)


def image(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size + 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Their progress bars and deprecations are their own."""
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@torch.no_grad()
@pytest.mark.parametrize(
    ("auto", "model_class"),
    [
        (AutoModel, VMambaModel),
        (AutoModelForImageClassification, VMambaForImageClassification),
        (AutoBackbone, VMambaBackbone),
    ],
)
def test_auto_classes_and_files(auto: Any, model_class: type[Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = config(num_labels=5, out_features=["stage2", "stage4"])
    model = auto.from_config(settings).eval()
    assert type(model) is model_class
    model.save_pretrained(tmp_path)
    # AutoBackbone asks the hub about any path.
    again = (model_class if auto is AutoBackbone else auto).from_pretrained(tmp_path).eval()
    assert AutoConfig.from_pretrained(tmp_path).dims == [8, 16, 32, 64]
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    for got, wanted in zip(again(image()).to_tuple(), model(image()).to_tuple(), strict=True):
        for a, b in zip(got if isinstance(got, tuple) else [got], wanted if isinstance(got, tuple) else [wanted]):  # noqa: B905
            assert torch.equal(a, b)


@torch.no_grad()
def test_the_same_numbers_as_the_model() -> None:
    settings = config(num_labels=5, stage_norms=True, out_features=STAGES)
    classifier = VMambaForImageClassification(settings).eval()
    model = vmamba.VMamba(settings.architecture(num_classes=5)).eval()
    model.load_state_dict(classifier.vmamba.state_dict())
    output = classifier(image(), labels=torch.tensor([1, 2]), output_hidden_states=True)
    torch.testing.assert_close(output.logits, model(image()))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([1, 2])))
    _, maps = model.forward_intermediates(image())
    assert len(output.hidden_states) == 5
    for got, expected in zip(output.hidden_states[1:], maps, strict=True):
        torch.testing.assert_close(got, expected)

    backbone = VMambaBackbone(settings).eval()
    for norm in backbone.vmamba.stage_norms:
        nn.init.normal_(norm.weight)
    model = vmamba.VMamba(settings.architecture(), stage_norms=True).eval()
    vmamba.load_weights(model, backbone.vmamba.state_dict())
    expected = model.forward_intermediates(image(), norm=True, intermediates_only=True)
    output = backbone(image())
    assert backbone.channels == [8, 16, 32, 64]
    assert output.hidden_states is None
    for got, wanted in zip(output.feature_maps, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    assert isinstance(backbone(image(), return_dict=False), tuple)


def test_only_what_is_asked_for_exists_and_gets_gradients() -> None:
    backbone = VMambaBackbone(config(out_features=["stage1", "stage3"]))
    first, third = backbone(image()).feature_maps
    (first.sum() + third.sum()).backward()
    assert len(backbone.vmamba.stages) == 3
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    plain = VMambaBackbone(config(out_features=["stage4"], stage_norms=False))
    assert not any("stage_norms" in name for name, _ in plain.named_parameters())


def test_fresh_heads_on_loaded_weights(tmp_path: Path) -> None:
    """What is not in the file is initialised; what is there stays."""
    torch.manual_seed(0)
    VMambaForImageClassification(config(num_labels=5)).save_pretrained(tmp_path)
    first = VMambaForImageClassification.from_pretrained(tmp_path)
    other = VMambaForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert other.vmamba.head.fc.weight.shape == (3, 64)
    for (name, a), b in zip(first.named_parameters(), other.parameters(), strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b) or name.startswith("vmamba.head.fc")


def test_gradient_checkpointing() -> None:
    torch.manual_seed(0)
    model = VMambaForImageClassification(config(num_labels=5)).train()
    gradients = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing is enable
        model.zero_grad()
        model(image()).logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_impossible_architectures() -> None:
    with pytest.raises(ValueError, match="scan must be one of cross"):
        config(scan="diagonal")


def heads() -> dict[str, Any]:
    backbone = config(out_features=STAGES)
    transformer = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
    small_transformer = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    return {
        "UperNet": lambda: transformers.UperNetForSemanticSegmentation(
            transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, num_labels=4, auxiliary_channels=8)
        ),
        "Mask2Former": lambda: transformers.Mask2FormerForUniversalSegmentation(
            transformers.Mask2FormerConfig(
                backbone_config=backbone,
                num_labels=4,
                num_queries=5,
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=32,
                dim_feedforward=32,
                encoder_layers=1,
                decoder_layers=2,
                num_attention_heads=2,
            )
        ),
        "DETR": lambda: transformers.DetrForObjectDetection(
            transformers.DetrConfig(
                use_timm_backbone=False,
                backbone_config=config(out_features=["stage4"]),
                num_labels=4,
                num_queries=5,
                **transformer,
                **small_transformer,
            )
        ),
        "RT-DETR": lambda: transformers.RTDetrForObjectDetection(
            transformers.RTDetrConfig(
                backbone_config=config(out_features=STAGES[1:]),
                num_labels=4,
                encoder_in_channels=[16, 32, 64],
                encoder_hidden_dim=32,
                d_model=32,
                num_queries=5,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                decoder_in_channels=[32, 32, 32],
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                decoder_layers=1,
                num_denoising=0,
                anchor_image_size=None,
            )
        ),
    }


@pytest.mark.parametrize("name", ["UperNet", "Mask2Former", "DETR", "RT-DETR"])
def test_heads_of_other_models_train(name: str) -> None:
    torch.manual_seed(0)
    model = heads()[name]().train()
    pixels = torch.randn(2, 3, 64, 64)
    if name == "UperNet":
        targets: dict[str, Any] = {"labels": torch.randint(4, (2, 64, 64))}
    elif name == "Mask2Former":
        masks = torch.zeros(2, 64, 64)
        masks[0, :32], masks[1, 32:] = 1, 1
        targets = {"mask_labels": [masks, masks], "class_labels": [torch.tensor([0, 1])] * 2}
    else:
        boxes = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
        targets = {"labels": [boxes, boxes]}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = model(pixel_values=pixels, **targets).loss
    loss.backward()
    assert loss.isfinite()
    backbone = {n: p for n, p in model.named_parameters() if "vmamba" in n}
    assert len(backbone) > 50
    assert [n for n, p in backbone.items() if p.grad is None or not p.grad.isfinite().all()] == []
    optimizer.step()
    assert all(not torch.equal(before[n], p) for n, p in backbone.items() if p.grad.any())
