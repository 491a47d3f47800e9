"""The authors' outputs, from the authors' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import vmamba
from support.golden import GOLDEN, Golden, relative_error, synthetic, synthetic_state_dict
from vmamba import VMamba, VMambaConfig
from vmamba.checkpoints.names import to_our_names
from vmamba.ops import BACKENDS, use_backend

RELEASED = sorted((GOLDEN / "released").glob("*.safetensors"))
VARIANTS = sorted((GOLDEN / "variants").glob("*.safetensors"))


def stem(path: Path) -> str:
    return path.stem


def slow_if_large(path: Path) -> list[pytest.MarkDecorator]:
    return [] if "tiny" in path.stem else [pytest.mark.slow]


def run(model: VMamba, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    last, stages = cast(Any, model.forward_intermediates(image))
    return model.forward_head(last), stages


# On a CPU the triton kernels are interpreted, minutes for a whole model; tests/ops holds them against the definition.
ON_CPU = [name for name in BACKENDS if name != "triton"]


@pytest.mark.parametrize("path", [pytest.param(path, marks=slow_if_large(path)) for path in RELEASED], ids=stem)
def test_released_outputs(path: Path, released: dict[str, Any]) -> None:
    name = path.stem.removesuffix("_96x96")
    golden = Golden.load(path)
    model = vmamba.create_model(name).eval()
    assert sum(p.numel() for p in model.parameters()) == released[name]["parameters"]
    vmamba.load_weights(model, synthetic_state_dict(released[name]["state_dict"]))
    for backend in ON_CPU:  # making the model takes longer than running it
        with torch.no_grad(), use_backend(backend):
            logits, stages = run(model, golden.image)
        for i, stage in enumerate(stages):
            assert relative_error(stage, golden.tensors[f"stage{i}"]) < 1e-4, backend
        assert relative_error(logits, golden.tensors["logits"]) < 1e-4, backend


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("path", VARIANTS, ids=stem)
def test_variant_outputs_and_gradients(path: Path, backend: str) -> None:
    golden = Golden.load(path)
    config = VMambaConfig.from_dict(golden.metadata["config"])
    model = VMamba(config).eval()
    vmamba.load_weights(model, synthetic_state_dict(golden.metadata["state_dict"]))
    image = golden.image.requires_grad_()
    with use_backend(backend):
        logits, stages = run(model, image)
        cotangent = torch.from_numpy(cotangent_of(golden, tuple(logits.shape)))
        (logits * cotangent).sum().backward()
    for i, stage in enumerate(stages):
        assert relative_error(stage, golden.tensors[f"stage{i}"]) < 1e-4
    assert relative_error(logits, golden.tensors["logits"]) < 1e-4

    expected = {n.removeprefix("grad/"): t for n, t in golden.tensors.items() if n.startswith("grad/")}
    assert relative_error(image.grad, expected.pop("image")) < 1e-3
    expected = to_our_names(expected)  # gradients translate as the weights do
    parameters = dict(model.named_parameters())
    assert len(expected) > 20
    for name, gradient in expected.items():
        assert relative_error(parameters[name].grad, gradient) < 1e-3, name


def cotangent_of(golden: Golden, shape: tuple[int, ...]) -> Any:
    return synthetic.weight(golden.metadata["cotangent"], shape)


@pytest.mark.parametrize("path", VARIANTS, ids=stem)
def test_author_options_mean_the_same(path: Path) -> None:
    metadata = Golden.load(path).metadata
    ours = VMambaConfig.from_dict(metadata["config"] | {"drop_path_rate": 0.1})
    assert VMambaConfig.from_author_options(metadata["reference_options"]) == ours
