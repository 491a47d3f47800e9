"""Files of detectors and segmenters: the authors' are converted, ours come back as they were."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from support.golden import GOLDEN, synthetic_state_dict
from vmamba import VMambaConfig
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.data import ade20k, coco
from vmamba.errors import CheckpointError
from vmamba.model.variants import VARIANTS
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.checkpoint import load_segmenter
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig
from vmamba.zoo import create_model

pytestmark = pytest.mark.slow

PICO = VARIANTS["vmamba_pico"].config


@pytest.fixture
def detector() -> MaskRCNN:
    return MaskRCNN(MaskRCNNConfig(PICO, ("cat", "dog"), 16, 32, 16, max_detections=7)).eval()


@pytest.fixture
def segmenter() -> UperNet:
    return UperNet(UperNetConfig(PICO, ("sky", "sea", "sand"), 16, 8, pool_scales=(1, 2))).eval()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_ours_come_back(detector: MaskRCNN, segmenter: UperNet, tmp_path: Path) -> None:
    again = load_detector(save_weights(detector, tmp_path / "d.safetensors"))
    assert again.config.classes == ("cat", "dog")
    assert again.config.max_detections == 7
    assert same(again, detector)
    whole = load_segmenter(save_weights(segmenter, tmp_path / "s.safetensors"))
    assert whole.config.pool_scales == (1, 2)
    assert same(whole, segmenter)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(whole.eval()(image), segmenter(image), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("file", "entry", "load", "classes"),
    [
        ("mask_rcnn.json", "mask_rcnn_tiny_s1l8_coco", load_detector, coco.CLASSES),
        ("upernet.json", "upernet_tiny_s1l8_ade20k", load_segmenter, ade20k.CLASSES),
    ],
)
def test_authors_files_convert(file: str, entry: str, load: Any, classes: tuple[str, ...], tmp_path: Path) -> None:
    """As OpenMMLab's runner saves them: the backbone, the widths and the classes are recognised."""
    weights = synthetic_state_dict(json.loads((GOLDEN / "dense" / file).read_text())[entry])
    torch.save({"meta": {"epoch": 12}, "state_dict": weights}, tmp_path / "authors.pth")
    assert main(["convert", str(tmp_path / "authors.pth")]) == 0
    model = load(tmp_path / "authors.safetensors")
    assert model.config.classes == classes
    assert model.config.backbone.depths == (2, 2, 8, 2)
    assert same(model, load(tmp_path / "authors.pth"))
    ours = "rpn_head.conv.0.0.bias" if load is load_detector else "decode_head.classifier.bias"
    authors = "rpn_head.rpn_conv.bias" if load is load_detector else "decode_head.conv_seg.bias"
    assert torch.equal(model.state_dict()[ours], weights[authors])


def test_a_checkpoint_of_another_task(
    detector: MaskRCNN, segmenter: UperNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = save_weights(detector, tmp_path / "d.safetensors"), save_weights(segmenter, tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match=r"d\.safetensors: holds a detector, not a segmenter; .*vmamba detect"):
        load_segmenter(one)
    with pytest.raises(CheckpointError, match=r"s\.safetensors: holds a segmenter, not a detector; .*vmamba segment"):
        load_detector(other)
    torch.save(create_model("vmamba_pico").state_dict(), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c\.pth: holds a classifier, not a detector; .*vmamba predict"):
        load_detector(tmp_path / "c.pth")
    assert main(["predict", str(GOLDEN), "--checkpoint", str(one)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_does_not_fit_is_named(detector: MaskRCNN, tmp_path: Path) -> None:
    path = save_weights(detector, tmp_path / "d.safetensors")
    settings = json.loads(path.with_suffix(".json").read_text())
    settings["class_names"].append("bird")
    path.with_suffix(".json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"d\.safetensors: does not fit: 2 classes, its description names 3"):
        load_detector(path)
    path.with_suffix(".json").write_text(json.dumps(settings | {"colour": 3}))
    with pytest.raises(CheckpointError, match=r"d\.json: .*'colour'"):
        load_detector(path)
    unknown = MaskRCNN(MaskRCNNConfig(VMambaConfig(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)), ("a",), 16, 32, 16))
    torch.save(unknown.state_dict(), tmp_path / "u.pth")
    with pytest.raises(CheckpointError, match=re.escape("say which it is with --model")):
        load_detector(tmp_path / "u.pth")
    torch.save({n: t for n, t in detector.state_dict().items() if "fpn" not in n}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"part\.pth: lacks fpn\.inner_blocks"):
        load_detector(tmp_path / "part.pth")
