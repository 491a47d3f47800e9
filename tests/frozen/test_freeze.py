"""Frozen models give what their originals give, and nobody can change them."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vmamba
from support.golden import GOLDEN, Golden, relative_error, synthetic_state_dict
from vmamba import VMamba, VMambaConfig
from vmamba.errors import FrozenError, OptionError
from vmamba.frozen.block import FrozenBlock
from vmamba.layers import Block
from vmamba.model.local_vmamba import LocalVMamba, LocalVMambaConfig
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

SMALL = VMambaConfig(num_classes=5, dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return VMamba(SMALL).eval()


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 96)


#: Relative error in norm against eager float32. Models of 8 channels have the largest in int8: the rounding errors of
#: so few products do not average out; 96 channels and more come to 2e-2.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 1e-1}


@pytest.mark.parametrize("path", sorted((GOLDEN / "variants").glob("*.safetensors")), ids=lambda path: path.stem)
def test_golden_variants(path: Path) -> None:
    golden = Golden.load(path)
    model = VMamba(VMambaConfig.from_dict(golden.metadata["config"])).eval()
    vmamba.load_weights(model, synthetic_state_dict(golden.metadata["state_dict"]))
    frozen = vmamba.freeze(model)
    with torch.no_grad():
        logits, expected = frozen(golden.image), model(golden.image)
        stages = frozen.forward_intermediates(golden.image, intermediates_only=True)
    assert relative_error(logits, expected) < 1e-5
    assert relative_error(logits, golden.tensors["logits"]) < 1e-4
    for i, stage in enumerate(stages):
        assert relative_error(stage, golden.tensors[f"stage{i}"]) < 1e-4
    for precision in ("bfloat16", "int8"):
        with torch.no_grad():
            logits = vmamba.freeze(model, precision)(golden.image)
        assert relative_error(logits, golden.tensors["logits"]) < TOLERANCE[precision]


def outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What a model of any kind computes, the detector without its discontinuous last steps."""
    if isinstance(model, MaskRCNN):
        maps = model.features(images)
        return [*maps, *(t for pair in model.rpn_head(maps) for t in pair)]
    result = model(images)
    return result if isinstance(result, list) else [result]


FORMS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: VMamba(SMALL),
    "position embedding": lambda: VMamba(VMambaConfig(dims=(8, 16), depths=(1, 1), pos_embed_size=64)),
    "features": lambda: timm.create_model("vmamba_pico", features_only=True),
    "normalised features": lambda: timm.create_model("vmamba_pico", features_only=True, stage_norms=True),
    "segmenter": lambda: UperNet(UperNetConfig(SMALL, ("a", "b"), channels=16, auxiliary_channels=8)),
    "local": lambda: LocalVMamba(
        LocalVMambaConfig(num_classes=5, dims=(8, 16), depths=(1, 1), directions=(("h", "v_flip", "w2", "w7"),))
    ),
    "detector": lambda: MaskRCNN(MaskRCNNConfig(SMALL, ("a",), channels=16, box_channels=16, mask_channels=16)),
    "block": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2), nn.Unflatten(2, (96, 64)), Tokens(), Block(8)),
}


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1)


@pytest.mark.filterwarnings("ignore")  # of the packages that transformers imports
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
def test_models_of_every_form(form: str, precision: str, images: Tensor) -> None:
    torch.manual_seed(0)
    model = FORMS[form]().eval()
    if form == "block":
        images = images.transpose(2, 3)
    frozen = vmamba.freeze(model, precision)
    assert isinstance(frozen, type(model))
    again, copied = pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = outputs(model, images)
            for other in (frozen, again, copied):
                for got, truth in zip(outputs(other, images), expected, strict=True):
                    assert relative_error(got, truth) < TOLERANCE[precision]
    assert form == "local" or any(isinstance(module, FrozenBlock) for module in frozen.modules())
    ours, theirs = model.state_dict(), frozen.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in frozen.named_parameters()}


def test_a_block_of_a_large_map() -> None:
    """Whose memory between its steps, 31 MB, comes in large pages."""
    torch.manual_seed(0)
    block = Block(64).eval()
    x = torch.randn(1, 200, 250, 64)
    with torch.no_grad():
        assert relative_error(vmamba.freeze(block)(x), block(x)) < 1e-5


def test_a_single_block() -> None:
    torch.manual_seed(0)
    block, x = Block(8, d_state=2, drop_path=0.5).eval(), torch.randn(2, 5, 3, 8)
    frozen = vmamba.freeze(block)
    with torch.no_grad():
        assert relative_error(frozen(x), block(x)) < 1e-5
    with pytest.raises(ValueError, match=r"Block: expected tokens \(B, H, W, 8\)"):
        frozen(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"gate": True, "conv": 5, "conv_bias": True, "mlp_ratio": 0.0},
        {"gate": True, "gate_act": False, "d_state": 3},
        {"conv": 0, "act": "gelu"},
        {"conv": 3, "act": "relu", "scan": "unidirectional"},
        {"act": "sigmoid", "conv_bias": True, "scan": "bidirectional"},
        {"scan": "cascade", "d_state": 2},
        {"scan": "cascade", "gate": True, "conv": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_blocks_with_other_options(options: dict[str, Any], precision: str) -> None:
    torch.manual_seed(0)
    block, x = Block(16, **options).eval(), torch.randn(2, 5, 3, 16)
    frozen = vmamba.freeze(block, precision)
    assert isinstance(frozen, FrozenBlock)
    assert "1 × Block, packed, several operators: " in str(frozen)
    with torch.no_grad():
        assert relative_error(frozen(x), block(x)) < TOLERANCE[precision]


@pytest.mark.parametrize("options", [{"out_norm": "softmax"}, {"out_act": True}, {"mlp_act": "relu"}], ids=str)
def test_blocks_that_are_called(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block, x = Block(8, **options).eval(), torch.randn(2, 5, 3, 8)
    frozen = vmamba.freeze(nn.Sequential(block))
    assert re.match("frozen for inference: 1 × Block, called: (ss2d.out_norm|ss2d.out_act|mlp.act) is a", str(frozen))
    with torch.no_grad():
        assert torch.equal(frozen(x), block(x))


CHANGES: dict[str, Callable[[Any], object]] = {
    "load_state_dict": lambda frozen: frozen.load_state_dict(VMamba(SMALL).state_dict()),
    "load_state_dict of a part": lambda frozen: frozen.stages[0].load_state_dict(VMamba(SMALL).stages[0].state_dict()),
    "load by assignment": lambda frozen: frozen.load_state_dict(VMamba(SMALL).state_dict(), assign=True),
    "in place": lambda frozen: frozen.head.fc.weight.zero_(),
    "in place, without gradient": lambda frozen: torch.no_grad()(frozen.head.fc.bias.add_)(1),
    "in place, every parameter": lambda frozen: [nn.init.zeros_(p) for p in frozen.parameters()],
    "another parameter": lambda frozen: setattr(frozen.head.fc, "weight", nn.Parameter(torch.zeros(5, 64))),
    "registered parameter": lambda frozen: frozen.head.fc.register_parameter("weight", None),
    "another layer": lambda frozen: setattr(frozen, "head", nn.Identity()),
    "added layer": lambda frozen: frozen.stages.append(nn.Identity()),
    "deleted layer": lambda frozen: delattr(frozen, "stem"),
    "exchanged block": lambda frozen: frozen.stages[0].blocks.__setitem__(0, nn.Identity()),
    "reset_classifier": lambda frozen: frozen.reset_classifier(3),
    "half": lambda frozen: frozen.half(),
    "half of a part": lambda frozen: frozen.stages[0].blocks[0].half(),
    "another device": lambda frozen: frozen.to("meta"),
    "another device, a part": lambda frozen: frozen.stem.to("meta"),
    "an attribute": lambda frozen: setattr(frozen, "config", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_refused(model: Any, images: Tensor, name: str) -> None:
    frozen = vmamba.freeze(model)
    before = frozen(images)
    with pytest.raises(RuntimeError, match=r"^a frozen model cannot be|^Inplace update to inference tensor"):
        CHANGES[name](frozen)
    assert torch.equal(frozen(images), before)


def test_handed_out_tensors_are_copies(model: Any, images: Tensor) -> None:
    frozen = vmamba.freeze(model)
    before = frozen(images)
    for tensor in frozen.state_dict().values():
        tensor.zero_()
    for parameter in frozen.parameters():
        parameter.data.zero_()
    frozen.head.fc.weight.data.zero_()
    assert torch.equal(frozen(images), before)


def test_the_original_stays(model: Any, images: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    frozen = vmamba.freeze(model)
    assert model.training
    assert type(model) is VMamba
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    expected = frozen(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(images), expected)


def test_what_does_nothing_is_allowed(model: Any, images: Tensor) -> None:
    frozen = vmamba.freeze(model)
    before = frozen(images)
    assert frozen.to("cpu").float().eval().train().requires_grad_(False) is frozen
    assert not any(module.training for module in frozen.modules())
    assert torch.equal(nn.Sequential(frozen).train()(images), before)
    assert vmamba.freeze(frozen) is frozen


def test_it_says_what_was_done(model: Any) -> None:
    assert str(vmamba.freeze(model)).startswith(
        "frozen for inference: 1 × MapStem, packed; 4 × Block, one operator; 3 × ConvDownsample, packed; "
        "1 × LayerNorm, called; 1 × Linear, packed\nFrozenVMamba("
    )
    assert str(vmamba.freeze(model, "int8")).startswith("frozen for inference in int8: 1 × MapStem")
    assert "(0): FrozenBlock(8: norm1+in_proj, conv+act, scan, " in str(vmamba.freeze(model))
    model.stages[1].blocks[0].ss2d.in_proj = nn.Sequential(model.stages[1].blocks[0].ss2d.in_proj)
    said = str(vmamba.freeze(model)).splitlines()[0]
    assert "3 × Block, one operator; " in said
    assert "1 × Block, called: ss2d.in_proj is a Sequential" in said


TOUCHES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "hook": (lambda layer: layer.register_forward_hook(print), "forward hooks"),
    "pre-hook": (lambda layer: layer.register_forward_pre_hook(print), "forward pre hooks"),
    "backward hook": (lambda layer: layer.register_full_backward_hook(print), "backward hooks"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "forward pre hooks"),
    "parametrization": (parametrizations.weight_norm, "parametrizations"),
    "forward": (lambda layer: setattr(layer, "forward", print), "a replaced forward"),
}


@pytest.mark.parametrize("name", TOUCHES)
def test_touched_layers_are_refused(model: Any, name: str) -> None:
    touch, what = TOUCHES[name]
    touch(model.stages[1].blocks[0].ss2d.x_proj)
    with pytest.raises(FrozenError, match=rf"^freeze: stages.1.blocks.0.ss2d.x_proj has {what}; remove or bake in"):
        vmamba.freeze(model)


def test_there_is_no_gradient(model: Any, images: Tensor) -> None:
    frozen = vmamba.freeze(model)
    assert not frozen(images).requires_grad
    with pytest.raises(FrozenError, match="a frozen layer has no gradient"):
        frozen(images.requires_grad_())


def test_saved_and_loaded(model: Any, images: Tensor) -> None:
    frozen, file = vmamba.freeze(model), io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images), frozen(images))
    model.load_state_dict(frozen.state_dict())


def test_precisions_are_for_float32_on_a_cpu(model: Any) -> None:
    with pytest.raises(OptionError, match=r"^freeze: unknown precision 'half'; choose one of float32, bfloat16, int8$"):
        vmamba.freeze(model, "half")
    with pytest.raises(FrozenError, match=r"^freeze: int8 is for float32 models on a CPU, and .* is torch\.bfloat16"):
        vmamba.freeze(model.bfloat16(), "int8")


def test_without_packed_layers(model: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernels are missing, or older than their sources."""
    expected = vmamba.freeze(model)(images)
    for module in ("layer", "model"):
        monkeypatch.setattr(importlib.import_module(f"vmamba.frozen.{module}"), "can_pack", lambda: "there are none")
    assert relative_error(vmamba.freeze(model)(images), expected) < 1e-5
    with pytest.raises(FrozenError, match="freeze: int8 needs the compiled CPU kernels: there are none"):
        vmamba.freeze(model, "int8")


def test_half_precision_and_autocast(model: Any, images: Tensor) -> None:
    half = vmamba.freeze(model.bfloat16())
    with torch.no_grad():
        assert relative_error(half(images.bfloat16()), model(images.bfloat16())) < 2e-2
        frozen = vmamba.freeze(model.float())
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(frozen(images), model(images)) < 2e-2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
@pytest.mark.parametrize(
    "options", [{}, {"pos_embed_size": 64, "scan": "cascade", "downsample": "patch_merging"}], ids=str
)
def test_compiled_and_traced(images: Tensor, options: dict[str, Any]) -> None:
    frozen = vmamba.freeze(VMamba(VMambaConfig(dims=(8, 16), depths=(1, 1), **options)))
    expected = frozen(images)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
            assert relative_error(compiled(images), expected) < 1e-5
    with torch.no_grad():
        assert relative_error(torch.jit.trace(frozen, images)(images), expected) < 1e-5


def test_threads_share_a_model(model: Any) -> None:
    frozen = vmamba.freeze(model)
    batches = [torch.randn(1, 3, 32 + 8 * i, 64) for i in range(8)]
    expected = [frozen(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, truth in zip(pool.map(frozen, batches), expected, strict=True):
            assert relative_error(got, truth) < 1e-5


def test_convolution_and_silu_are_one_kernel_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = importlib.import_module("vmamba.ops.depthwise_silu")  # the function has its name
    kernels = pytest.importorskip("vmamba.ops.backends.triton.depthwise_silu")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # there in Triton's interpreter
    block, x = Block(4).eval().to(device), torch.randn(1, 2, 3, 4, device=device)
    calls: list[int] = []
    original = kernels.depthwise_silu
    monkeypatch.setattr(operator, "on_gpu", lambda x: True)
    monkeypatch.setattr(FrozenBlock, "is_packed", lambda self, x: False)  # nor is it there
    monkeypatch.setattr(kernels, "depthwise_silu", lambda *args: calls.append(1) or original(*args))
    with torch.no_grad():
        assert relative_error(vmamba.freeze(block)(x), block(x)) < 1e-4
    assert len(calls) == 1


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = (GOLDEN.parents[1] / "docs" / "inference.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out.startswith(re.search(r"# (frozen for.*) …", code)[1])  # type: ignore[index]
    with torch.no_grad():
        torch.manual_seed(0)
        image = torch.randn(1, 3, 200, 333)
        assert relative_error(names["frozen"](image), names["model"].eval()(image)) < 1e-5
