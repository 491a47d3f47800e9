"""LocalVMamba and EfficientVMamba: the papers' sizes, the contract of timm, what their scans see."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import vmamba
from support.golden import relative_error
from vmamba.analysis.cost import cost
from vmamba.errors import OptionError
from vmamba.layers.routed_scan import ChannelAttention, StridedSS2D, directed_order
from vmamba.model.efficient_vmamba import EfficientVMambaConfig
from vmamba.model.local_vmamba import LocalVMambaConfig
from vmamba.relatives import RELATIVES

pytestmark = pytest.mark.slow

# Parameters in millions and multiply-adds in thousands of millions at 224², as the papers' tables say them.
PUBLISHED = {
    "local_vmamba_tiny": (26, 5.7),
    "local_vmamba_small": (50, 11.4),
    "efficient_vmamba_tiny": (6, 0.8),
    "efficient_vmamba_small": (11, 1.3),
}
SMALL = {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1), "d_state": 2, "num_classes": 5}
FEW = {
    "local_vmamba_tiny": SMALL | {"directions": (("h", "v_flip", "w2", "w7_flip"),)},
    "efficient_vmamba_tiny": SMALL,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_papers(name: str) -> None:
    """To the digits that the papers print."""
    with torch.device("meta"):
        whole = cost(timm.create_model(name).eval())[0]
    assert (round(whole.parameters / 1e6), round(whole.total_macs / 1e9, 1)) == PUBLISHED[name]


def test_names() -> None:
    assert set(PUBLISHED) == set(RELATIVES) <= set(timm.list_models())
    assert vmamba.list_models(relatives=True) == [*vmamba.list_models(), *RELATIVES]
    assert not set(RELATIVES) & set(vmamba.list_models())
    with pytest.raises(OptionError, match="no weights that this package can load"):
        vmamba.create_model("local_vmamba_tiny", pretrained=True)
    with pytest.raises(OptionError, match="is a relative of VMamba"):
        vmamba.zoo.architecture_of("local_vmamba_tiny")


@pytest.mark.parametrize("name", FEW)
def test_features_training_and_checkpoints(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model(name, **FEW[name])
    images = torch.randn(2, 3, 70, 101)
    assert model(images).shape == (2, 5)
    maps = timm.create_model(name, features_only=True, **FEW[name])(images)
    assert [tuple(t.shape[1:]) for t in maps] == [(16, 17, 25), (24, 9, 13), (32, 5, 7), (40, 3, 4)]
    loss = torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 3]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    other = vmamba.create_model(name, checkpoint=tmp_path / "weights.safetensors", **FEW[name])
    model.eval(), other.eval()
    assert torch.equal(other(images), model(images))


@pytest.mark.parametrize("name", FEW)
def test_compile_export_and_autocast(name: str) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model(name, **FEW[name]).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = model(images).detach()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), expected)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(images[:1].repeat(3, 1, 1, 1))[:1], expected[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(images), expected) < 5e-2


def test_initialised_in_dirtied_memory() -> None:
    for name, options in FEW.items():
        with torch.device("meta"):
            model = vmamba.create_model(name, **options)
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(float("nan") if tensor.is_floating_point() else -1)
        model.init_weights()
        assert all(t.isfinite().all() for t in (*model.parameters(), *model.buffers())), name
        assert model.train()(torch.randn(2, 3, 64, 64)).isfinite().all()


def test_directions() -> None:
    order = directed_order(3, 4, ("h", "v_flip", "w2", "w2_flip"))
    assert order[0].tolist() == [*range(12), -1, -1, -1, -1]
    assert order[1].tolist() == [11, 7, 3, 10, 6, 2, 9, 5, 1, 8, 4, 0, -1, -1, -1, -1]
    assert order[2].tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, -1, -1, 10, 11, -1, -1]
    assert torch.equal(order[3], order[2].flip(0))
    for name in ("d", "w", "w0", "wx", "h_back"):
        with pytest.raises(ValueError, match=f"unknown direction '{name}'"):
            directed_order(3, 4, (name,))


def test_a_token_of_the_strided_layer_is_seen_on_its_own_route_alone() -> None:
    """Without the convolution, a change of one token reaches every second row and column and nothing else."""
    torch.manual_seed(0)
    layer = StridedSS2D(8, d_state=2, conv=0, out_norm="none").double()
    x = torch.randn(1, 5, 7, 8, dtype=torch.float64)
    changed = x.clone()
    changed[0, 0, 1] += 1
    moved = (layer(changed) - layer(x)).abs().amax(-1)[0] > 1e-12
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[0::2, 1::2] = True
    assert torch.equal(moved, expected)


def test_channel_attention_by_hand() -> None:
    attention = ChannelAttention(16)
    x = torch.randn(2, 4, 3, 5, 16)  # routes, too
    norm = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    hidden = torch.nn.functional.gelu(norm.mean((2, 3)) @ attention.fc1.weight.T + attention.fc1.bias)
    gate = torch.sigmoid(hidden @ attention.fc2.weight.T + attention.fc2.bias)
    torch.testing.assert_close(attention(x), x * gate[:, :, None, None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalVMambaConfig(directions=(("h", "v"),)), "four names for each of the 15 blocks"),
        (lambda: LocalVMambaConfig(depths=(1, 1, 1, 1)), "four names for each of the 4 blocks"),
        (lambda: LocalVMambaConfig(directions=(("h", "v", "d", "h"),)), "unknown direction 'd'"),
        (lambda: EfficientVMambaConfig(scan_stages=5), "scan_stages must be an integer from 0 to 4, got 5"),
        (lambda: EfficientVMambaConfig(mlp_ratio=4.0), "mlp_ratio 0"),
    ],
)
def test_impossible_configurations(make: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()  # type: ignore[operator]
