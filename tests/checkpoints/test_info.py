"""The description beside weights: written, read back, bounded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.data import resolve_data_config

from vmamba import VMamba, VMambaConfig
from vmamba.checkpoints.info import MAX_SIZE, ModelInfo, Preprocessing, read_info
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import CheckpointError, OptionError
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.zoo import model_from_checkpoint

SMALL = VMambaConfig(dims=(8, 16), depths=(1, 1), num_classes=2)
PREPARE = Preprocessing(96, None, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.9)


def write(model: VMamba, path: Path) -> Path:
    training = {"recipe": "finetune", "epochs": 3, "top1": 93.5}
    return save_weights(model, path, class_names=["cat", "St. Bernard"], preprocessing=PREPARE, training=training)


def test_what_is_written_comes_back_with_the_model(tmp_path: Path) -> None:
    info = model_from_checkpoint(write(VMamba(SMALL), tmp_path / "a.safetensors")).info
    assert info.task == "classification"
    assert info.class_names == ("cat", "St. Bernard")
    assert info.preprocessing == PREPARE
    assert info.training == {"recipe": "finetune", "epochs": 3, "top1": 93.5}
    assert VMambaConfig.from_dict(info.architecture) == SMALL
    assert ModelInfo.from_json(info.to_json()).to_json() == info.to_json()


def test_timm_prepares_images_as_described(tmp_path: Path) -> None:
    model = model_from_checkpoint(write(VMamba(SMALL), tmp_path / "a.safetensors"))
    settings = resolve_data_config({}, model=model)
    assert settings["input_size"] == (3, 96, 96)
    assert (settings["mean"], settings["std"]) == (PREPARE.mean, PREPARE.std)
    assert (settings["interpolation"], settings["crop_pct"]) == ("bilinear", 0.9)


def test_written_again_by_a_command_it_stays(tmp_path: Path) -> None:
    model = model_from_checkpoint(write(VMamba(SMALL), tmp_path / "a.safetensors"))
    again = read_info(save_weights(model, tmp_path / "b.safetensors"))
    assert again == read_info(tmp_path / "a.safetensors")
    model.reset_classifier(5)  # other classes: the names are those of others
    assert read_info(save_weights(model, tmp_path / "c.safetensors")).class_names == ()


def test_detectors_state_their_classes_once(tmp_path: Path) -> None:
    backbone = VMambaConfig(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), num_classes=0)
    model = MaskRCNN(MaskRCNNConfig(backbone, ("cat", "dog"), 16, 32, 16))
    path = save_weights(model, tmp_path / "d.safetensors", preprocessing=Preprocessing(800, 1333))
    written = json.loads(path.with_suffix(".json").read_text())
    assert written["task"] == "detection"
    assert written["class_names"] == ["cat", "dog"]
    assert "classes" not in written["architecture"]
    again = load_detector(path)
    assert again.config == model.config
    assert again.info.preprocessing == Preprocessing(800, 1333)


def test_files_of_the_first_release(tmp_path: Path) -> None:
    model = VMamba(SMALL)
    path = save_weights(model, tmp_path / "a.safetensors")
    path.with_suffix(".json").write_text(SMALL.to_json())
    again = model_from_checkpoint(path)
    assert again.config == SMALL
    assert again.info == ModelInfo(architecture=dataclasses.asdict(SMALL))
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())
    detector = {"task": "detection", "backbone": dataclasses.asdict(SMALL), "classes": ["a"], "channels": 16}
    info = ModelInfo.from_json(json.dumps(detector))
    assert (info.task, info.class_names, info.architecture["channels"]) == ("detection", ("a",), 16)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Class folders of another encoding: Python gives their bytes as surrogates, which have no UTF-8."""
    names = ["caf\udce9", "\u732b \U0001f431"]
    path = save_weights(VMamba(SMALL), tmp_path / "a.safetensors", class_names=names)
    assert list(model_from_checkpoint(path).info.class_names) == names
    assert "\u732b \U0001f431" in path.with_suffix(".json").read_text(encoding="utf-8")


def test_other_number_of_names(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="1 class names for 2 classes"):
        save_weights(VMamba(SMALL), tmp_path / "a.safetensors", class_names=["cat"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "expected a JSON object, got list"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 2, "a": ' * 100_000, "nested too deeply"),
        ('{"format": 2, "task": NaN}', "task must be one of"),
        ('{"format": 3}', "format 3 is not known"),
        ('{"format": 2, "tusk": 1}', "unknown entry 'tusk'; do you mean 'task'"),
        ('{"format": 2, "task": "dancing"}', "task must be one of classification"),
        ('{"format": 2, "task": []}', "task must be one of classification"),
        ('{"format": 2, "class_names": "abc"}', "class_names must be a list of strings"),
        ('{"format": 2, "class_names": [1, 2]}', "class_names must be a list of strings"),
        ('{"format": 2, "architecture": 7}', "architecture must be an object"),
        ('{"format": 2, "training": null}', "training must be an object"),
        ('{"format": 2, "preprocessing": 3}', "preprocessing must be an object"),
        ("9" * 5000, "not JSON"),
        ("\x00\x01", "not JSON"),
    ],
)
def test_damaged_descriptions(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"a\.json: {message}.*; correct it, or remove it") as caught:
        read_info(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size must be pixels"),
        ({"image_size": 10**9}, "image_size must be pixels"),
        ({"image_size": 224.0}, "image_size must be pixels"),
        ({"max_size": True}, "max_size must be pixels"),
        ({"mean": 0.5}, "mean must be numbers"),
        ({"mean": [0.5, None, 0.5]}, "mean must be numbers"),
        ({"mean": [10**400]}, "mean must be numbers"),
        ({"std": [1, 1]}, "one number a channel"),
        ({"std": [0, 1, 1]}, "std above 0"),
        ({"interpolation": "magic"}, "unknown interpolation 'magic'"),
        ({"interpolation": []}, "unknown interpolation"),
        ({"crop_pct": 0}, "crop_pct must be above 0"),
        ({"crop": 1}, "unknown entry 'crop'; do you mean 'crop_pct'"),
    ],
)
def test_impossible_preprocessing(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"format": 2, "preprocessing": values}))
    with pytest.raises(CheckpointError, match=rf"a\.json: preprocessing: .*{message}"):
        read_info(tmp_path / "a.safetensors")


def test_a_giant_description_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(MAX_SIZE + 1)
    with pytest.raises(CheckpointError, match="larger than 64 MB"):
        read_info(tmp_path / "a.safetensors")
