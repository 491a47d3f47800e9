"""What people use on PyTorch models, used on ours: adapters, pruning, parametrizations, offloading, quantisers."""

from __future__ import annotations

import io
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vmamba
from support.golden import relative_error

LAYERS = (nn.Linear, nn.Conv2d)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return vmamba.create_model("vmamba_pico", num_classes=10).eval()


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 64)


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) in LAYERS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages that peft imports
@pytest.mark.parametrize("start", ["random", "usual"])
def test_lora_on_all_linear_layers(model: Any, images: Tensor, start: str) -> None:
    from peft import LoraConfig, get_peft_model

    before, count = model(images).detach(), sum(type(layer) is nn.Linear for layer in layers(model))
    config = LoraConfig(target_modules="all-linear", r=2, init_lora_weights=start == "usual")
    adapted = get_peft_model(model, config)
    adapters = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * count
    adapted(images).square().sum().backward()
    learning = {name for name, p in adapters.items() if p.grad is not None and p.grad.abs().sum() > 0}
    if start == "usual":  # B is zero at first: it learns, and A once it is not
        assert relative_error(adapted(images), before) < 1e-5
        assert learning == {name for name in adapters if "lora_B" in name}
        return
    assert learning == adapters.keys()
    with torch.no_grad():
        output = adapted(images)
        assert relative_error(output, before) > 0.1
        with adapted.disable_adapter():
            assert relative_error(adapted(images), before) < 1e-5
        assert relative_error(adapted.merge_and_unload()(images), output) < 1e-4


def test_pruning_while_training(model: Any, images: Tensor) -> None:
    for layer in layers(model):
        prune.l1_unstructured(layer, "weight", 0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    for layer in layers(model):
        assert layer.weight_orig.grad.abs().sum() > 0
        prune.l1_unstructured(layer, "weight", 0.3)  # once more, of what is left
    with torch.no_grad():
        output = model(images)
        for layer in layers(model):
            prune.remove(layer, "weight")
            assert (layer.weight == 0).float().mean() >= 0.45
        assert relative_error(model(images), output) < 1e-5


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_layers(model: Any, images: Tensor, norm: Any) -> None:
    before = model(images)
    for layer in layers(model):
        norm(layer)
    after = model(images)
    assert (relative_error(after, before) < 1e-4) == (norm is parametrizations.weight_norm)
    after.square().sum().backward()
    for layer in layers(model):
        for parameter in layer.parametrizations.weight.parameters():
            assert parameter.grad is not None
    with torch.no_grad():
        for layer in layers(model):
            nn.utils.parametrize.remove_parametrizations(layer, "weight")
        assert relative_error(model(images), after) < 1e-4


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the packages that accelerate imports
def test_offloading(model: Any, images: Tensor) -> None:
    from accelerate import cpu_offload

    expected = model(images)
    offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert relative_error(offloaded(images), expected) < 1e-5


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # its own, of being deprecated
def test_dynamic_quantisation_converts_every_linear_layer(model: Any, images: Tensor) -> None:
    expected, names = model(images), [name for name, m in model.named_modules() if type(m) is nn.Linear]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    for name in names:
        assert isinstance(quantised.get_submodule(name), torch.ao.nn.quantized.dynamic.Linear), name
    assert 1e-4 < relative_error(quantised(images), expected) < 0.05


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the packages that torchao imports
@pytest.mark.parametrize("name", ["vmamba_nano", "vit_tiny_patch16_224"])
def test_weight_only_quantisation_shrinks_as_a_vit_does(name: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    model, image = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    expected, before = model(image), size(model)
    linear = sum(layer.weight.numel() for layer in model.modules() if type(layer) is nn.Linear)
    quantize_(model, Int8WeightOnlyConfig())
    assert relative_error(model(image), expected) < 0.03
    saved = (before - size(model)) / before
    assert saved == pytest.approx(0.75 * 4 * linear / before, rel=0.02)  # a quarter is left of every linear layer


def size(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (3,)])
def test_no_parameter_of_a_backbone_is_idle(images: Tensor, out_indices: tuple[int, ...]) -> None:
    """As distributed training demands."""
    model = timm.create_model("vmamba_pico", features_only=True, stage_norms=True, out_indices=out_indices)
    sum((feature * torch.randn_like(feature)).sum() for feature in model(images)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
