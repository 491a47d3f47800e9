from __future__ import annotations

import collections
import errno
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import vmamba
from support.golden import GOLDEN, Golden, relative_error, synthetic_state_dict
from vmamba import VMamba, VMambaConfig, files, load_weights
from vmamba.checkpoints.info import read_info
from vmamba.checkpoints.names import to_our_names
from vmamba.checkpoints.reading import read_checkpoint
from vmamba.checkpoints.recognition import identify
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import CheckpointError
from vmamba.zoo import model_from_checkpoint

AUTHOR_FILE = GOLDEN / "author_format_checkpoint.pth"


@pytest.fixture
def default() -> Golden:
    """The golden variant whose weights the authors-format file holds."""
    return Golden.load(GOLDEN / "variants" / "default.safetensors")


@pytest.fixture
def small(default: Golden) -> VMamba:
    return VMamba(VMambaConfig.from_dict(default.metadata["config"])).eval()


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("weights", ["auto", "model"])
def test_author_file_gives_the_authors_outputs(small: VMamba, default: Golden, weights: Any) -> None:
    assert load_weights(small, AUTHOR_FILE, weights=weights) == ([], [])
    with torch.no_grad():
        assert relative_error(small(default.image), default.tensors["logits"]) < 1e-4


def test_the_average_is_another_set_of_weights(small: VMamba) -> None:
    load_weights(small, AUTHOR_FILE, weights="model")
    model = state(small)
    load_weights(small, AUTHOR_FILE, weights="model_ema")
    assert not torch.equal(model["stem.conv1.weight"], small.state_dict()["stem.conv1.weight"])


def test_missing_average_is_named(small: VMamba) -> None:
    with pytest.raises(CheckpointError, match=r"the state dict: has no 'model_ema' weights \(found: model\)"):
        load_weights(small, {"model": read_checkpoint(AUTHOR_FILE)}, weights="model_ema")
    with pytest.raises(ValueError, match="weights must be one of auto, model, model_ema, got 'ema'"):
        load_weights(small, AUTHOR_FILE, weights="ema")


@pytest.mark.slow
def test_every_released_checkpoint_fits_by_name_and_is_recognised(released: dict[str, Any]) -> None:
    for name, entry in released.items():
        authors = {n: torch.empty(shape, device="meta") for n, shape in entry["state_dict"].items()}
        ours = to_our_names(authors)
        with torch.device("meta"):
            expected = VMamba(vmamba.zoo.VARIANTS[name].config).state_dict()
        assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in expected.items()}
        assert identify(ours) == name


def as_first_release(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        r"^patch_embed\.0": "patch_embed.proj",
        r"^patch_embed\.2": "patch_embed.norm",
        r"blocks\.(\d+)\.norm\.": r"blocks.\1.ln_1.",
        r"\.op\.": ".self_attention.",
        r"^classifier\.norm": "norm",
        r"^classifier\.head": "head",
    }
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, new in renames.items():
            name = re.sub(pattern, new, name)  # noqa: PLW2901
        renamed[name] = tensor
    return renamed


def test_names_of_the_first_release_and_of_wrappers_load_alike(tmp_path: Path) -> None:
    golden = Golden.load(GOLDEN / "variants" / "vanilla.safetensors")
    weights = synthetic_state_dict(golden.metadata["state_dict"])
    model = VMamba(VMambaConfig.from_dict(golden.metadata["config"]))
    load_weights(model, weights)
    expected = state(model)
    for other in (as_first_release(weights), {f"module.{n}": t for n, t in weights.items()}, {"state_dict": expected}):
        model.init_weights()
        load_weights(model, other)
        assert_same(state(model), expected)


def test_convolutions_in_place_of_linear_layers(small: VMamba, default: Golden) -> None:
    weights = synthetic_state_dict(default.metadata["state_dict"])
    load_weights(small, weights)
    expected = state(small)
    convolutions = {
        n: t[..., None, None] if n.endswith(("proj.weight", "fc1.weight")) else t for n, t in weights.items()
    }
    small.init_weights()
    load_weights(small, convolutions)
    assert_same(state(small), expected)


@pytest.mark.parametrize("name", ["mask_rcnn", "upernet"])
def test_backbone_of_a_dense_checkpoint(name: str, small: VMamba) -> None:
    import json

    shapes = json.loads((GOLDEN / "dense" / f"{name}.json").read_text())[f"{name}_golden"]
    dense = {"meta": {}, "state_dict": synthetic_state_dict(shapes)}
    head = small.head.fc.weight.clone()
    result = load_weights(small, dense)
    assert result.missing_keys == ["norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"]
    assert {n.split(".")[0] for n in result.unexpected_keys} == {"stage_norms"}
    assert torch.equal(small.head.fc.weight, head)

    backbone = vmamba.create_model(
        "vmamba_pico", dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), features_only=True, stage_norms=True
    ).eval()
    load_weights(backbone, dense)
    deep = vmamba.create_model(
        "vmamba_pico", dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), features_only=True, stage_norms=True, out_indices=(3,)
    ).eval()
    load_weights(deep, dense)  # the norms of other stages are not needed
    golden = Golden.load(next((GOLDEN / "dense").glob(f"{name}_*.safetensors")))
    if "backbone0" in golden.tensors:
        with torch.no_grad():
            for i, feature in enumerate(backbone(golden.image)):
                assert relative_error(feature, golden.tensors[f"backbone{i}"]) < 1e-4
            assert relative_error(deep(golden.image)[0], golden.tensors["backbone3"]) < 1e-4


def test_features_only_models_take_a_classifier_checkpoint(default: Golden) -> None:
    config = {k: default.metadata["config"][k] for k in ("dims", "depths")}
    weights = synthetic_state_dict(default.metadata["state_dict"])
    for options in ({}, {"stage_norms": True}):
        model = vmamba.create_model("vmamba_pico", **config, **options, features_only=True).eval()
        load_weights(model, weights)
        if not options:
            with torch.no_grad():
                for i, feature in enumerate(model(default.image)):
                    assert relative_error(feature, default.tensors[f"stage{i}"]) < 1e-4


def test_position_embedding_is_interpolated(default: Golden) -> None:
    config = VMambaConfig(dims=(8, 16), depths=(1, 1), pos_embed_size=32)
    large = VMamba(VMambaConfig(dims=(8, 16), depths=(1, 1), pos_embed_size=64))
    load_weights(large, VMamba(config).state_dict())
    assert large.pos_embed.shape == (1, 8, 16, 16)


def test_headless_model_takes_a_full_checkpoint(small: VMamba, default: Golden) -> None:
    headless = VMamba(VMambaConfig.from_dict(default.metadata["config"] | {"num_classes": 0}))
    result = load_weights(headless, AUTHOR_FILE)
    assert result.missing_keys == []
    assert result.unexpected_keys == ["head.fc.weight", "head.fc.bias"]


# Checkpoints that do not fit: one line, and the model is as it was.


def fails(model: VMamba, source: Any, message: str, **options: Any) -> None:
    before = state(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(model, source, **options)
    assert "\n" not in str(caught.value)
    assert_same(state(model), before)


def test_another_variant_is_named(released: dict[str, Any]) -> None:
    model = vmamba.create_model("vmamba_tiny_s1l8")
    other = synthetic_state_dict(released["vmamba_tiny_s2l5"]["state_dict"])
    fails(model, other, r"does not fit vmamba_tiny_s1l8, it looks like vmamba_tiny_s2l5: 54 missing \(stages")


def test_other_number_of_classes(small: VMamba, default: Golden) -> None:
    model = VMamba(VMambaConfig.from_dict(default.metadata["config"] | {"num_classes": 7}))
    fails(model, AUTHOR_FILE, "its classifier has 10 classes, the model's 7; create the model with num_classes=10, or")
    head = model.head.fc.weight.clone()
    result = load_weights(model, AUTHOR_FILE, strict=False)
    assert result.missing_keys == ["head.fc.weight", "head.fc.bias"]
    assert torch.equal(model.head.fc.weight, head)
    assert torch.equal(model.stem.conv1.weight, read_checkpoint(AUTHOR_FILE)["patch_embed.0.weight"])


def test_missing_and_extra_entries(small: VMamba) -> None:
    weights = read_checkpoint(AUTHOR_FILE)
    without = {n: t for n, t in weights.items() if n != "layers.0.blocks.0.op.Ds"}
    fails(small, without, r"1 missing \(stages\.0\.blocks\.0\.ss2d\.D\)$")
    fails(
        small,
        weights | {"layers.0.blocks.0.op.bias": torch.zeros(1)},
        r"1 unexpected \(stages\.0\.blocks\.0\.ss2d\.bias\)$",
    )
    fails(
        small, {n: t for n, t in weights.items() if "head" not in n}, r"2 missing \(head\.fc\.weight, head\.fc\.bias\)"
    )
    assert load_weights(small, without, strict=False).missing_keys == ["stages.0.blocks.0.ss2d.D"]


def test_wrong_shapes(small: VMamba) -> None:
    weights = read_checkpoint(AUTHOR_FILE) | {"patch_embed.0.bias": torch.zeros(5)}
    fails(small, weights, r"1 misshaped \(stem\.conv1\.bias: \(5,\), not \(4,\)\)$")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_and_not_run(small: VMamba, tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "hostile.pth", tmp_path / "ran"
    content = {"model": read_checkpoint(AUTHOR_FILE), "config": Hostile(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    fails(small, path, r"hostile\.pth: refused, nothing in it was run: it asks to load '\w+\.system'")
    assert not marker.exists()


def test_pickled_objects_beside_the_weights_need_no_library(small: VMamba, tmp_path: Path) -> None:
    """yacs' configuration node, mmengine's history and numpy's arrays, none of which is looked up."""
    import numpy as np

    module: Any = type(os)("mmengine.logging.history_buffer")
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    buffer = module.HistoryBuffer()
    buffer.history = np.arange(3.0)
    path = tmp_path / "dense.pth"
    import sys

    packages = {name: type(os)(name) for name in ("mmengine", "mmengine.logging")} | {module.__name__: module}
    sys.modules.update(packages)
    try:
        torch.save({"state_dict": read_checkpoint(AUTHOR_FILE), "message_hub": {"loss": buffer}}, path)
    finally:
        for name in packages:
            del sys.modules[name]
    assert load_weights(small, path) == ([], [])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(small: VMamba, tmp_path: Path, suffix: str, share: float) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(small.state_dict(), whole)
    else:
        safetensors.torch.save_file(small.state_dict(), whole)
    content = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    fails(small, path, r"cut\.\w+: (damaged, or not a checkpoint|the file is empty)")


def test_files_that_are_not_checkpoints(small: VMamba, tmp_path: Path) -> None:
    fails(small, tmp_path / "none.pth", r"none\.pth: no such file")
    fails(small, tmp_path, "a folder, not a checkpoint")
    (tmp_path / "text.pth").write_text("hello, this is no checkpoint\n")
    fails(small, tmp_path / "text.pth", r"text\.pth: (damaged|refused)")
    torch.save([1, 2], tmp_path / "list.pth")
    fails(small, tmp_path / "list.pth", "holds a list, not a mapping of weights")
    torch.save({"epoch": 3}, tmp_path / "no_weights.pth")
    fails(small, tmp_path / "no_weights.pth", r"has no weights \(found: epoch\)")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(collections.Counter()))
    fails(small, tmp_path / "plain.pth", r"plain\.pth: ")


# Writing


def test_save_and_load_again(small: VMamba, tmp_path: Path) -> None:
    path = save_weights(small, tmp_path / "new" / "model.safetensors")
    assert VMambaConfig.from_dict(read_info(path).architecture) == small.config
    again = model_from_checkpoint(path)
    assert_same(state(again), state(small))
    (tmp_path / "new" / "model.json").write_text('{"dimz": 3}')
    with pytest.raises(
        CheckpointError, match=r"model\.json: VMambaConfig: unknown option 'dimz'; do you mean 'dims'\?"
    ):
        model_from_checkpoint(path)
    with pytest.raises(ValueError, match=r"weights are written as \.safetensors"):
        save_weights(small, tmp_path / "model.pth")


def test_full_disk_loses_nothing(small: VMamba, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_weights(small, tmp_path / "model.safetensors")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    small.init_weights()
    with pytest.raises(
        CheckpointError, match="cannot write, and nothing was changed: No space left on device; make room"
    ):
        save_weights(small, path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_unknown_architecture_needs_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fits none of the known variants and has no .*\.json beside it"):
        model_from_checkpoint(AUTHOR_FILE)


def test_reading_a_buffer_is_not_offered() -> None:
    """Only paths and mappings: a file object would be read twice."""
    with pytest.raises(TypeError):
        read_checkpoint(io.BytesIO(b""))
