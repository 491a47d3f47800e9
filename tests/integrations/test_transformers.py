"""VMamba as a backbone and a classifier of transformers."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from PIL import Image
from torch import nn
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

import vmamba
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import MissingPackageError
from vmamba.integrations.transformers import (
    VMambaBackbone,
    VMambaConfig,
    VMambaForImageClassification,
    VMambaModel,
)
from vmamba.tasks.classification.prediction import eval_transform, predict
from vmamba.zoo import model_from_checkpoint

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


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """Weights as training leaves them."""
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=3)
    nn.init.normal_(model.head.fc.weight)
    prepare = Preprocessing(64, None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bilinear", 0.8)
    return save_weights(
        model, tmp_path / "model.safetensors", class_names=["cat", "dog", "St. Bernard"], preprocessing=prepare
    )


def test_pipeline_on_a_saved_folder(described: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network; the same classes and nearly the same probabilities as our own prediction."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).resize((360, 270)).save(path)
    folder = tmp_path / "theirs"
    VMambaForImageClassification.from_checkpoint(described).save_pretrained(folder)
    classify = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    got = {entry["label"]: entry["score"] for entry in classify(str(path))}

    ours = model_from_checkpoint(described)
    (prediction,) = predict(ours, [path], transform=eval_transform(ours))
    names = ours.info.class_names
    expected = {names[i]: p for i, p in zip(prediction.classes, prediction.probabilities, strict=True)}
    assert list(got) == list(expected)
    assert list(got.values()) == pytest.approx(list(expected.values()), abs=0.02)  # their resizing rounds otherwise

    back = model_from_checkpoint(folder / "model.safetensors")  # its config.json says the same as our description
    assert back.config == ours.config
    assert (back.info.class_names, back.info.preprocessing) == (names, ours.info.preprocessing)

    again = AutoModelForImageClassification.from_pretrained(folder)  # keeps what it knows when it is saved again
    again.save_pretrained(tmp_path / "again")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "again")
    assert processor.size["shortest_edge"] == 80
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "St. Bernard"}


def test_fields_are_those_of_our_configuration() -> None:
    ours = vmamba.VMambaConfig(
        dims=(8, 16), depths=(1, 2), ssm_ratio=2.0, scan="cascade", pos_embed_size=64, in_chans=1, num_classes=7
    )
    theirs = VMambaConfig.from_architecture(ours)
    assert theirs.architecture(num_classes=7) == ours
    again = VMambaConfig.from_dict(json.loads(theirs.to_json_string()))
    assert again.architecture(num_classes=7) == ours
    assert VMambaConfig().architecture(num_classes=1000) == vmamba.VMambaConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="depths"):
        VMambaConfig(depths="two")


def test_nothing_loaded_is_initialised_again(tmp_path: Path) -> None:
    """transformers 5 calls `_init_weights` on loaded models too: every kind of parameter must keep its value."""
    torch.manual_seed(0)
    settings = config(num_labels=5, pos_embed_size=64, gate=True, ssm_conv_bias=True, out_norm="layernorm_dwconv3x3")
    model = VMambaForImageClassification(settings)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.fill_(1 + i / 1000)
    model.save_pretrained(tmp_path)
    again = VMambaForImageClassification.from_pretrained(tmp_path)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing package is named where it is needed, as an ImportError with the extra that installs it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "vmamba.integrations.transformers")
    with pytest.raises(
        MissingPackageError, match=r"transformers \(5.4 or newer\) is not installed.*vmamba\[transformers\]"
    ):
        importlib.import_module("vmamba.integrations.transformers")
    assert issubclass(MissingPackageError, ImportError)
