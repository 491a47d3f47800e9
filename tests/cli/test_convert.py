"""``vmamba convert``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import vmamba
from support.commands import Fails, Run
from support.golden import GOLDEN, synthetic_state_dict
from vmamba import VMambaConfig

AUTHOR_FILE = GOLDEN / "author_format_checkpoint.pth"


@pytest.mark.slow
def test_convert_recognises_the_variant(
    run: Run, fails: Fails, tmp_path: Path, released: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "vssm1_tiny.pth"
    torch.save({"model": synthetic_state_dict(released["vmamba_tiny_s1l8"]["state_dict"])}, source)
    assert run("convert", source) == 0
    target = source.with_suffix(".safetensors")
    assert capsys.readouterr().out == f"wrote {target} and {target.with_suffix('.json')}\n"
    info = json.loads(target.with_suffix(".json").read_text())
    assert VMambaConfig.from_dict(info["architecture"]) == vmamba.zoo.VARIANTS["vmamba_tiny_s1l8"].config
    expected = vmamba.create_model("vmamba_tiny_s1l8", checkpoint=source).state_dict()
    converted = safetensors.torch.load_file(target)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    assert "exists; name another target, or replace it with --force" in fails("convert", source)
    assert run("convert", source, "--force") == 0


def test_convert_with_the_authors_yaml(
    run: Run, fails: Fails, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = tmp_path / "model.yaml"
    yaml.write_text(
        "MODEL:\n  VSSM:\n    EMBED_DIM: 8\n    DEPTHS: [1, 1, 1, 1]\n    SSM_D_STATE: 1\n    SSM_RATIO: 1.0\n"
        '    SSM_CONV_BIAS: false\n    SSM_FORWARDTYPE: "v05_noz"\n    DOWNSAMPLE: "v3"\n    NORM_LAYER: "ln2d"\n'
    )
    target = tmp_path / "out.safetensors"
    for weights in ("model", "model_ema"):
        assert run("convert", AUTHOR_FILE, target, "--config", yaml, "--weights", weights, "--force") == 0
        expected = torch.load(AUTHOR_FILE, weights_only=False, pickle_module=_WithoutYacs)[weights]
        assert torch.equal(safetensors.torch.load_file(target)["norm.weight"], expected["classifier.norm.weight"])
    capsys.readouterr()
    assert "fits none of the known variants" in fails("convert", AUTHOR_FILE, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


class _WithoutYacs:
    """A pickle module for our own golden file, an independent way to read it: unknown classes become dictionaries."""

    import pickle as _pickle

    load = _pickle.load
    UnpicklingError = _pickle.UnpicklingError

    class Unpickler(_pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module.startswith("yacs"):
                return type(name, (dict,), {})
            return super().find_class(module, name)


def test_an_input_is_never_the_target(run: Run, fails: Fails, weights: Path) -> None:
    before = weights.read_bytes()
    assert "would be written over an input" in fails("convert", weights, weights, "--force")
    assert "would be written over an input" in fails("convert", weights, "--force")
    link = weights.with_name("link.safetensors")
    link.symlink_to(weights)
    assert "would be written over an input" in fails("convert", weights, link, "--force")
    assert weights.read_bytes() == before
    other = weights.with_name("other.safetensors")
    info = other.with_suffix(".json")
    info.write_text("mine")
    assert "other.json exists; name another target" in fails("convert", weights, other)
    assert info.read_text() == "mine"
    assert not other.exists()


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_the_average_of_detectors_and_segmenters(
    run: Run, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(kind)
    weights = safetensors.torch.load_file(source)
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    both = tmp_path / "both.pth"
    torch.save({"state_dict": weights, "state_dict_ema": average}, both)
    both.with_suffix(".json").write_text(source.with_suffix(".json").read_text())
    for which, expected in (("model", weights), ("model_ema", average), ("auto", weights)):
        target = tmp_path / f"{which}.safetensors"
        assert run("convert", both, target, "--weights", which) == 0
        converted = safetensors.torch.load_file(target)
        assert all(torch.equal(converted[name], expected[name]) for name in expected)
        assert json.loads(target.with_suffix(".json").read_text())["class_names"]
