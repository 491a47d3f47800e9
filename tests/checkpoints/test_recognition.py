"""What a checkpoint is, and that nothing is built or allocated that its weights are not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import vmamba
from support.memory import at_most
from vmamba import VMamba, VMambaConfig
from vmamba.checkpoints.recognition import identify, open_checkpoint
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import CheckpointError
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.zoo import model_from_checkpoint

SMALL = VMambaConfig(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), num_classes=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_weights(VMamba(SMALL), tmp_path / "a.safetensors")


def describe(path: Path, **architecture: Any) -> None:
    """Change the description beside a file."""
    target = path.with_suffix(".json")
    values = json.loads(target.read_text())
    values["architecture"] |= architecture
    target.write_text(json.dumps(values))


def refused(path: Path, message: str, load: Any = model_from_checkpoint) -> None:
    with at_most(200), pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path.with_suffix("")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": [10**9] * 4}, r"a\.json: VMambaConfig: dims must be at most"),
        ({"dims": [1 << 16] * 4}, "does not fit"),
        ({"dims": [8] * 1000, "depths": [1] * 1000}, "at most 16 stages"),
        ({"depths": [10**12, 1, 1, 1]}, "depths must be at most"),
        ({"depths": [512] * 4}, "its stages have 1, 1, 1, 1 blocks, not 512, 512, 512, 512"),
        ({"d_state": 10**9}, "d_state must be at most"),
        ({"d_state": 4096}, "does not fit"),
        ({"in_chans": 10**9}, "in_chans must be at most"),
        ({"num_classes": 10**9}, "num_classes must be at most"),
        ({"ssm_ratio": 1e18}, "ssm_ratio must be at most"),
        ({"ssm_ratio": 10**400}, "ssm_ratio must be at most 64"),
        ({"mlp_ratio": 1e300}, "mlp_ratio must be"),
        ({"ssm_conv": 10**9 + 1}, "ssm_conv must be at most"),
        ({"dt_rank": 10**9}, "dt_rank must be at most"),
        ({"pos_embed_size": 10**9}, "pos_embed_size must be at most"),
        ({"pos_embed_size": 1 << 16}, r"does not fit.*1 missing \(pos_embed\)"),
        ({"dims": [[8]] * 4}, "dims must be a sequence of positive integers"),
        ({"gate": None}, "gate must be true or false"),
        ({"scan": ["cross"]}, "scan must be one of"),
    ],
)
def test_descriptions_of_giants(path: Path, options: dict[str, Any], message: str) -> None:
    describe(path, **options)
    refused(path, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 10**9}, "channels is 1000000000"),
        ({"channels": 1 << 16}, "does not fit"),
        ({"box_channels": "32"}, "box_channels is '32'"),
        ({"proposals": 10**18}, "proposals is 1000000000000000000"),
        ({"score_threshold": None}, "score_threshold is None"),
        ({"max_detections": -1}, "max_detections is -1"),
        ({"backbone": 3}, "expected an object of options, got int"),
        ({"colour": 3}, "'colour'"),
    ],
)
def test_descriptions_of_giant_detectors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    model = MaskRCNN(MaskRCNNConfig(SMALL, ("cat", "dog"), 16, 32, 16))
    path = save_weights(model, tmp_path / "a.safetensors")
    describe(path, **options)
    refused(path, message, load_detector)


def weights(**changes: Tensor) -> dict[str, Tensor]:
    return {**VMamba(SMALL).state_dict(), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head.fc.weight": torch.tensor(1.0)}, r"head\.fc\.weight has the impossible shape \(\)"),
        ({"head.fc.weight": torch.empty(0, 64)}, r"head\.fc\.weight has the impossible shape \(0, 64\)"),
        ({"head.fc.weight": torch.empty(64)}, r"head\.fc\.weight has the impossible shape \(64,\)"),
        ({"head.fc.bias": torch.empty(4)}, r"misshaped \(head\.fc\.bias|classifier has 3 classes"),
        ({"stem.conv1.weight": torch.tensor(1.0)}, "impossible shape"),
        ({"stem.conv1.weight": torch.empty(4, 70_000, 3, 3)}, "in_chans must be at most"),
        (
            {"norm.weight": torch.full((64,), float("nan"))},
            r"infinite values in 1 of \d+ entries \(norm\.weight\)",
        ),
        ({"norm.bias": torch.full((64,), float("-inf"))}, "NaN or infinite values"),
        ({"norm.bias": torch.full((64,), 1e300, dtype=torch.float64)}, "NaN or infinite values"),
        ({"norm.weight": torch.ones(64, dtype=torch.int8)}, r"norm\.weight: torch\.int8, not torch\.float32"),
        ({"norm.weight": torch.ones(64, dtype=torch.complex64)}, r"norm\.weight: torch\.complex64, not torch\.float32"),
        ({"line\nbreak\x1b[31m": torch.ones(1)}, r"unexpected \(line\\nbreak\\x1b\[31m\)"),
        ({"x" * 100_000: torch.ones(1)}, r"unexpected \(x{120}\)"),
    ],
)
def test_weights_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    path = save_weights(VMamba(SMALL), tmp_path / "a.safetensors").with_suffix(".pth")
    torch.save(weights(**changes), path)
    refused(path, message)
    model = VMamba(SMALL)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    if "impossible" not in message and "in_chans" not in message:
        with pytest.raises(CheckpointError, match=message):
            vmamba.load_weights(model, path)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_weights_that_are_no_vmamba(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(torch.nn.Linear(2, 2).state_dict(), path)
    refused(path, r"lacks stem\.conv1\.weight|fits none of the known variants")
    refused(path, "holds a classifier, not a segmenter", load_segmenter)


def test_a_valid_file_of_terabytes_is_not_read(tmp_path: Path, path: Path) -> None:
    """A classifier whose head would fill eight terabytes, in a sparse file with a right header."""
    rows = (8 << 40) // (4 * 64)
    shapes = {name: list(t.shape) for name, t in weights().items()} | {"head.fc.weight": [rows, 64]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        try:
            file.truncate(8 + len(encoded) + end)
        except OSError:
            pytest.skip("no sparse files of this size here")
    refused(path, "num_classes must be at most 1000000")


def test_the_description_tells_the_architecture(tmp_path: Path) -> None:
    """What weights alone cannot: activations, scan order."""
    config = dataclasses.replace(SMALL, ssm_act="relu", scan="bidirectional")
    path = save_weights(VMamba(config), tmp_path / "a.safetensors")
    assert model_from_checkpoint(path).config == config
    path.with_suffix(".json").unlink()
    refused(path, r"fits none of the known variants and has no a\.json beside it; say which it is with --model")
    assert model_from_checkpoint(path, config=config).config == config


@pytest.mark.parametrize("name", ["vmamba_pico", "vmamba_nano"])
def test_variants_are_recognised_whatever_the_channels(name: str) -> None:
    for in_chans in (1, 3, 12):
        checkpoint = open_checkpoint(vmamba.create_model(name, in_chans=in_chans, num_classes=7).state_dict())
        assert identify(checkpoint.backbone) == name
        assert (checkpoint.in_chans, checkpoint.num_classes) == (in_chans, 7)
        assert checkpoint.architecture().in_chans == in_chans


def test_a_loaded_model_owns_its_memory_and_trains(path: Path) -> None:
    """Neither the file nor a model of the same size is needed besides; half precision becomes the model's own."""
    torch.save({n: t.half() for n, t in weights().items()}, path.with_suffix(".pth"))
    for source in (path, path.with_suffix(".pth")):
        model = model_from_checkpoint(source, config=SMALL)
        assert all(p.dtype == torch.float32 and p.requires_grad and p.is_contiguous() for p in model.parameters())
        assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    path.write_bytes(b"")
    assert model_from_checkpoint(path.with_suffix(".pth"), config=SMALL).head.fc.weight.isfinite().all()
