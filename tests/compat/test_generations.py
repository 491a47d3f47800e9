"""The authors' two generations of layers against the golden outputs and gradients of their own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support.golden import GOLDEN, Golden, relative_error, synthetic, synthetic_state_dict
from vmamba.compat import v0, v2

CASES = sorted((GOLDEN / "layers").glob("*.safetensors"))
MODULES = {"v0": v0, "v2": v2}


def build(golden: Golden) -> nn.Module:
    layer: nn.Module = getattr(MODULES[golden.metadata["generation"]], golden.metadata["class"])(
        **golden.metadata["arguments"]
    )
    state_dict = synthetic_state_dict(golden.metadata["state_dict"])
    layer.load_state_dict(state_dict, strict=True)
    return layer


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_outputs_and_gradients_are_the_authors(path: Path) -> None:
    golden = Golden.load(path)
    layer = build(golden).eval()
    name, *shape = golden.metadata["input"]
    x = torch.from_numpy(synthetic.image(name, *shape))
    if golden.metadata["layout"] == "NHWC":
        x = x.permute(0, 2, 3, 1).contiguous()
    x.requires_grad_()
    y = layer(x)
    assert relative_error(y, golden.tensors["output"]) < 1e-4
    with torch.no_grad():  # may take other kernels
        assert relative_error(layer(x), golden.tensors["output"]) < 1e-4
    cotangent = torch.from_numpy(synthetic.weight(golden.metadata["cotangent"], tuple(y.shape)))
    (y * cotangent).sum().backward()
    assert x.grad is not None
    assert relative_error(x.grad, golden.tensors["grad/input"]) < 1e-3
    parameters = dict(layer.named_parameters())
    gradients = {n.removeprefix("grad/"): t for n, t in golden.tensors.items() if n.startswith("grad/")}
    assert parameters.keys() == gradients.keys() - {"input"}
    for entry, parameter in parameters.items():
        assert parameter.grad is not None, entry
        assert relative_error(parameter.grad, gradients[entry]) < 1e-3, entry


def variants() -> list[Path]:
    return sorted((GOLDEN / "variants").glob("*.safetensors"))


@pytest.mark.parametrize("path", variants(), ids=lambda path: path.stem)
def test_the_whole_network(path: Path) -> None:
    golden = Golden.load(path)
    options: dict[str, Any] = golden.metadata["reference_options"]
    model = v2.VSSM(**options).eval()
    model.load_state_dict(synthetic_state_dict(golden.metadata["state_dict"]), strict=True)
    assert relative_error(model(golden.image), golden.tensors["logits"]) < 1e-4


def test_a_released_checkpoint(released: dict[str, Any]) -> None:
    options = {"dims": 96, "depths": (2, 2, 8, 2), "ssm_d_state": 1, "ssm_ratio": 1.0, "ssm_conv_bias": False}
    more = {"forward_type": "v05_noz", "norm_layer": "ln2d", "downsample_version": "v3", "patchembed_version": "v2"}
    model = v2.VSSM(**options, **more).eval()
    model.load_state_dict(synthetic_state_dict(released["vmamba_tiny_s1l8"]["state_dict"]), strict=True)
    golden = Golden.load(GOLDEN / "released" / "vmamba_tiny_s1l8_96x96.safetensors")
    assert relative_error(model(golden.image), golden.tensors["logits"]) < 1e-4


def test_names_of_the_first_generation_load_into_the_second() -> None:
    old = v2.SS2D(16, d_state=4, forward_type="v0")
    new = v2.SS2D(16, d_state=4, forward_type="v2")
    new.load_state_dict(old.state_dict(), strict=True)
    x = torch.randn(1, 5, 6, 16)
    assert relative_error(new(x), old(x)) < 1e-6


@pytest.mark.parametrize(("older", "newer"), [("v3noz", "v3_noz"), ("v2nozact", "v2_nozact"), ("v2no32", "v2")])
def test_older_spellings_of_forward_types(older: str, newer: str) -> None:
    layers = [v2.SS2D(16, d_state=4, forward_type=name) for name in (older, newer)]
    layers[0].load_state_dict(layers[1].state_dict(), strict=True)
    x = torch.randn(1, 5, 6, 16)
    assert torch.equal(layers[0](x), layers[1](x))


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3)])
def test_backbones_give_maps(indices: tuple[int, ...]) -> None:
    backbone = v2.Backbone_VSSM(out_indices=indices, dims=8, depths=(1, 1, 1, 1), norm_layer="ln2d")
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 8 * 2**i, 16 // 2**i, 24 // 2**i) for i in indices]


@pytest.mark.parametrize("make", [lambda: v0.VSSBlock(16), lambda: v2.VSSBlock(16), lambda: v0.PatchExpand2D(8)])
def test_parameters_are_finite_in_dirty_memory(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    assert all(p.isfinite().all() for p in make().parameters())


def test_a_layer_of_theirs_is_a_block_in_a_stage() -> None:
    stage = v0.VSSLayer(16, 2, drop_path=[0.0, 0.1], downsample=v0.PatchMerging2D, use_checkpoint=True, d_state=2)
    x = torch.randn(2, 8, 6, 16, requires_grad=True)
    y = stage(x)
    assert y.shape == (2, 4, 3, 32)
    y.sum().backward()
    assert all(p.grad is not None for p in stage.parameters())


def test_another_layout_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, H, W, 16\), got \(2, 16, 5, 6\)"):
        v2.SS2D(16)(torch.randn(2, 16, 5, 6))
