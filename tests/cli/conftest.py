"""Small models, images, and a way to run commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import vmamba
from support.commands import Fails, Run
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.model.variants import VARIANTS
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

PICO = VARIANTS["vmamba_pico"].config


@pytest.fixture
def run() -> Run:
    """Run a command; returns its exit status."""
    return lambda *arguments: main([str(argument) for argument in arguments])


@pytest.fixture
def fails(run: Run, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that fails; returns the one line that it leaves on the error stream."""

    def fail(*arguments: object) -> str:
        assert run(*arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("vmamba: error: ")
        return line

    return fail


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A classifier of 3 classes."""
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=3)
    return save_weights(model, tmp_path / "weights.safetensors")


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = MaskRCNN(MaskRCNNConfig(PICO, ("cat", "dog"), 16, 32, 16, max_detections=3))
    return save_weights(model, tmp_path / "detector.safetensors")


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    """A segmenter whose classes change from pixel to pixel."""
    torch.manual_seed(0)
    model = UperNet(UperNetConfig(PICO, ("sky", "sea", "sand"), 16, 8))
    for parameter in model.decode_head.parameters():
        torch.nn.init.normal_(parameter)
    return save_weights(model, tmp_path / "segmenter.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40 + i, 50), (80 * i, 10, 200)).save(folder / f"{i}.png")
    return folder
