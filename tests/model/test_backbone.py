"""What timm and its users expect of a model, beyond timm's own tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import vmamba
from vmamba import VMamba, VMambaConfig, freeze


def pico(**overrides: Any) -> Any:
    return timm.create_model("vmamba_pico", **overrides).eval()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (200, 333), (32, 32), (33, 47), (64, 32)])
@pytest.mark.parametrize("name", ["vmamba_pico", "vanilla_vmamba_tiny"])
def test_feature_maps(name: str, height: int, width: int) -> None:
    overrides = {"dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}
    model = timm.create_model(name, features_only=True, **overrides).eval()
    assert model.feature_info.channels() == [8, 16, 32, 64]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        maps = model(torch.randn(2, 3, height, width))
    expected: tuple[int, ...] = (height, width)
    for i, (feature, channels) in enumerate(zip(maps, (8, 16, 32, 64), strict=True)):
        stride = 4 if i == 0 else 2
        floor = name.startswith("vanilla") and i == 0  # 4×4 patches leave out a remainder
        expected = tuple(side // stride if floor else -(-side // stride) for side in expected)
        assert feature.shape == (2, channels, *expected)
        assert feature.isfinite().all()


def test_create_model_options() -> None:
    assert pico(num_classes=0)(torch.randn(1, 3, 64, 64)).shape == (1, 192)
    assert pico(num_classes=5, in_chans=1)(torch.randn(1, 1, 64, 64)).shape == (1, 5)
    model = pico(features_only=True, out_indices=(1, 3))
    assert [m.shape[1] for m in model(torch.randn(1, 3, 64, 64))] == [48, 192]
    blocks = [block for stage in pico(drop_path_rate=0.4).stages for block in stage.blocks]
    torch.testing.assert_close([block.drop_path2.drop_prob for block in blocks[1:]], [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(TypeError, match="depth_multiplier"):
        pico(depth_multiplier=2)
    with pytest.raises(ValueError, match="VMambaConfig: scan must be one of"):
        pico(scan="diagonal")


def test_stage_norms_give_normalised_maps() -> None:
    model = pico(features_only=True, stage_norms=True)
    for feature in model(torch.randn(2, 3, 64, 96)):
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), atol=1e-4, rtol=0)


def test_forward_is_features_then_head() -> None:
    model, x = pico(), torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, 192, 2, 2)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, features)
    assert [m.shape[1] for m in maps] == [24, 48, 96, 192]
    (normed,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed, features)
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NHWC, got 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_pruning_keeps_the_maps() -> None:
    model, x = pico(), torch.randn(1, 3, 64, 64)
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.stages) == 2
    torch.testing.assert_close(model.forward_intermediates(x, indices=[1], intermediates_only=True), expected)


def test_state_parameters_are_not_decayed() -> None:
    model = VMamba(VMambaConfig(dims=(8, 16), depths=(1, 1), pos_embed_size=32))
    skipped = model.no_weight_decay()
    assert skipped <= dict(model.named_parameters()).keys()
    expected = {"pos_embed"} | {f"stages.{i}.blocks.0.ss2d.{n}" for i in (0, 1) for n in ("A_log", "D", "dt_proj_bias")}
    assert skipped == expected


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    x, gradients = torch.randn(2, 3, 64, 64), []
    torch.manual_seed(0)
    model = pico().train()
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("init", ["mamba", "rand", "zero"])
def test_initial_scan_parameters(init: str) -> None:
    torch.manual_seed(0)
    ss2d = VMamba(VMambaConfig(dims=(64,), depths=(1,), d_state=4, ssm_init=init)).stages[0].blocks[0].ss2d
    assert (ss2d.D == 1).all()
    if init == "mamba":
        torch.testing.assert_close(ss2d.A_log[1, 5].exp(), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        step = torch.nn.functional.softplus(ss2d.dt_proj_bias)
        assert step.min() >= 0.99e-3
        assert step.max() <= 1.01e-1
        assert step.log().std() > 1  # spread over the decades, not bunched
    elif init == "zero":
        assert (ss2d.A_log == 0).all()
    else:
        assert 0.8 < ss2d.A_log.std() < 1.2


def test_init_weights_after_to_empty() -> None:
    with torch.device("meta"):
        model = VMamba(vmamba.zoo.VARIANTS["vmamba_pico"].config)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    model.init_weights()
    assert all(p.isfinite().all() for p in model.parameters())


def test_position_embedding_fits_any_image() -> None:
    model = VMamba(VMambaConfig(dims=(8, 16), depths=(1, 1), num_classes=2, pos_embed_size=64)).eval()
    for size in ((64, 64), (96, 80), (33, 47)):
        assert model(torch.randn(1, 3, *size)).isfinite().all()


def test_feature_maps_have_the_position_embedding() -> None:
    model = pico(pos_embed_size=64)
    backbone = pico(pos_embed_size=64, features_only=True)
    vmamba.load_weights(backbone, model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone(x), model.forward_intermediates(x, intermediates_only=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype: torch.dtype) -> None:
    model, x = pico().train(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype):
        loss = model(x).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert pico().to(dtype)(x.to(dtype)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", [{}, {"scan": "cascade", "out_norm": "dwconv3x3", "gate": True}], ids=str)
def test_is_one_graph(options: dict[str, Any], grad: bool) -> None:
    model, x = pico(**options), torch.randn(1, 3, 64, 64)
    with torch.set_grad_enabled(grad):
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_torchscript(tmp_path: Path) -> None:
    model, x = pico(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        for scripted in (torch.jit.script(model), torch.jit.trace(model, x)):
            scripted.save(tmp_path / "model.pt")
            torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of PyTorch's own operations
@pytest.mark.parametrize("form", ["trained", "frozen"])
def test_vmap_and_gradients_of_each_sample(form: str) -> None:
    """`torch.func`'s transforms over whole models, against one sample after the other."""
    torch.manual_seed(0)
    model: Any = VMamba(VMambaConfig(dims=(8, 8), depths=(1, 1), num_classes=3)).eval()
    x = torch.randn(3, 1, 3, 32, 40)
    used = freeze(model) if form == "frozen" else model
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(used)(x), torch.stack([used(image) for image in x]))
    if form == "frozen":
        return
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, parameters, image)
        return logits.square().sum()

    samples = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(len(x)):
        for name, gradient in torch.func.grad(loss)(parameters, x[i]).items():
            torch.testing.assert_close(samples[name][i], gradient, rtol=1e-3, atol=1e-5)
