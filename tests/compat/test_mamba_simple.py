"""Mamba's block against transformers' implementation of the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.golden import relative_error
from vmamba.compat.mamba_simple import Mamba

transformers = pytest.importorskip("transformers")


def pair(**options: object) -> tuple[Mamba, torch.nn.Module]:
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    torch.manual_seed(0)
    ours = Mamba(24, d_state=5, expand=2, **options)
    config = MambaConfig(
        hidden_size=24, state_size=5, expand=2, conv_kernel=ours.d_conv, use_bias=ours.in_proj.bias is not None
    )
    theirs = MambaMixer(config, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())  # strict: the same entries
    return ours, theirs


@pytest.mark.parametrize("options", [{}, {"bias": True, "d_conv": 3}], ids=str)
def test_output_and_gradients(options: dict[str, object]) -> None:
    ours, theirs = pair(**options)
    x = torch.randn(2, 11, 24)
    y, expected = ours(x), theirs(x)
    assert relative_error(y, expected) < 1e-5
    cotangent = torch.randn_like(y)
    grads = torch.autograd.grad(y, list(ours.parameters()), cotangent)
    truths = torch.autograd.grad(
        expected, [theirs.get_parameter(name) for name, _ in ours.named_parameters()], cotangent
    )
    for (name, _), gradient, truth in zip(ours.named_parameters(), grads, truths, strict=True):
        assert relative_error(gradient, truth) < 1e-4, name


@pytest.mark.parametrize("prompt", [1, 2, 7], ids="prompt of {}".format)
def test_steps_continue_a_sequence(prompt: int) -> None:
    ours = Mamba(24, d_state=5, layer_idx=3).eval()
    x = torch.randn(2, 10, 24)
    expected = ours(x)
    cache = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    outputs = [ours(x[:, :prompt], inference_params=cache)]
    assert list(cache.key_value_memory_dict) == [3]
    for t in range(prompt, 10):
        cache.seqlen_offset = t
        outputs.append(ours(x[:, t : t + 1], inference_params=cache))
    assert relative_error(torch.cat(outputs, dim=1), expected) < 1e-5

    states = ours.allocate_inference_cache(2, 10)
    stepped = [ours.step(x[:, t : t + 1], *states)[0] for t in range(10)]
    assert relative_error(torch.cat(stepped, dim=1), expected) < 1e-5
    with pytest.raises(ValueError, match="one token at a time, got 2"):
        ours.step(x[:, :2], *states)
    with pytest.raises(ValueError, match="needs layer_idx"):
        Mamba(24)(x, inference_params=cache)


def test_start_values_and_marks_for_training_scripts() -> None:
    torch.manual_seed(0)
    mamba: Any = Mamba(64, d_state=4, dt_min=0.01, dt_max=0.2)
    step = torch.nn.functional.softplus(mamba.dt_proj.bias)
    assert 0.0099 < step.min() < step.max() < 0.201
    torch.testing.assert_close(-mamba.A_log.exp(), -torch.tensor([1.0, 2, 3, 4]).expand(128, 4))
    assert mamba.dt_proj.bias._no_reinit
    assert mamba.A_log._no_weight_decay
    assert mamba.D._no_weight_decay
    assert Mamba(8, dt_rank=3, dt_init="constant").dt_proj.weight.unique().tolist() == pytest.approx([3**-0.5])
    with pytest.raises(ValueError, match="dt_init must be"):
        Mamba(8, dt_init="zeros")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mamba = Mamba(24)
    x = torch.randn(2, 11, 24)
    expected = mamba(x)
    with torch.autocast("cpu", dtype):
        y = mamba(x)
    assert y.dtype == dtype
    assert relative_error(y, expected) < 2e-2
    stored = Mamba(24, dtype=dtype)
    assert stored.A_log.dtype == torch.float32
    assert stored(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("halved", [False, True])
def test_bidirectional(halved: bool) -> None:
    """Two ordinary blocks that share their projections, one of them on the reversed sequence."""
    torch.manual_seed(0)
    both = Mamba(24, d_state=5, bimamba_type="v2", if_divide_out=halved, init_layer_scale=0.5)
    for parameter in both.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 11, 24)
    shared = {"in_proj.weight": both.in_proj.weight, "out_proj.weight": both.out_proj.weight}
    sets = {suffix: Mamba(24, d_state=5) for suffix in ("", "_b")}
    for suffix, one in sets.items():
        names = {"A_log": f"A{suffix}_log", "D": f"D{suffix}"}
        for layer in ("conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"):
            names[layer] = layer.replace(".", f"{suffix}.")
        one.load_state_dict(shared | {name: both.get_parameter(own) for name, own in names.items()})
    expected = both.gamma * (sets[""](x) + sets["_b"](x.flip(1)).flip(1)) / (2 if halved else 1)
    assert relative_error(both(x), expected) < 1e-5
    with pytest.raises(ValueError, match="has no cache"):
        Mamba(24, bimamba_type="v2", layer_idx=0)(x, SimpleNamespace(seqlen_offset=0, key_value_memory_dict={}))
    with pytest.raises(ValueError, match="bimamba_type must be"):
        Mamba(24, bimamba_type="v9")


def test_across_slices() -> None:
    """SegMamba's third scan: the ordinary block on the tokens in the order of their place within their slice."""
    torch.manual_seed(0)
    three = Mamba(24, d_state=5, bimamba_type="v3", nslices=4)
    for parameter in three.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    own = three.state_dict()
    two = Mamba(24, d_state=5, bimamba_type="v2")
    two.load_state_dict({name: own[name] for name in two.state_dict()})
    one = Mamba(24, d_state=5)
    one.load_state_dict({name: own[_of_slices(name)] for name in one.state_dict()})
    x = torch.randn(2, 12, 24)
    order = torch.arange(12).view(4, 3).T.flatten()  # 0, 3, 6, 9, 1, 4 …
    across = torch.empty_like(x)
    across[:, order] = one(x[:, order])
    assert relative_error(three(x), two(x) + across) < 1e-5
    with pytest.raises(ValueError, match="11 tokens do not make nslices = 4 equal slices"):
        three(x[:, :11])


def _of_slices(name: str) -> str:
    layer, _, rest = name.partition(".")
    if layer in ("in_proj", "out_proj"):
        return name
    return {"A_log": "A_s_log"}.get(layer, f"{layer}_s") + (f".{rest}" if rest else "")
