"""Frozen segmenters and detectors give the authors' outputs; their heads are products, too."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vmamba
from support.golden import GOLDEN, Golden, relative_error, synthetic_state_dict
from vmamba import VMambaConfig
from vmamba.checkpoints.loading import load_whole
from vmamba.checkpoints.names import to_our_names
from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

#: Relative error in norm. The golden models have 8 to 64 channels: in int8 the rounding errors of so few products do
#: not average out.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 1e-1}


def golden_model(name: str) -> tuple[Golden, Any]:
    """A golden file and its model: ``"upernet"`` or ``"mask_rcnn"``."""
    size = {"upernet": "96x128", "mask_rcnn": "128x160"}[name]
    golden = Golden.load(GOLDEN / "dense" / f"{name}_{size}.safetensors")
    weights = synthetic_state_dict(json.loads((GOLDEN / "dense" / f"{name}.json").read_text())[f"{name}_golden"])
    backbone = VMambaConfig.from_author_options(golden.metadata["backbone"])
    model: nn.Module
    if name == "upernet":
        model = UperNet(UperNetConfig(backbone, tuple("abcdefg"), channels=16, auxiliary_channels=12))
        load_whole(model, open_checkpoint(weights))
    else:
        model = MaskRCNN(MaskRCNNConfig(backbone, tuple("abcde"), channels=16, box_channels=32, mask_channels=16))
        model.load_state_dict(to_our_names(weights))
    return golden, model.eval()


def steps(model: Any, golden: Golden) -> dict[str, Tensor]:
    """What a model computes on the way, by the golden file's names."""
    maps = model.features(golden.image)
    if isinstance(model, UperNet):
        named = {f"backbone{i}": m for i, m in enumerate(maps)}
        coarse, auxiliary = model.coarse(golden.image), model.auxiliary_head(maps)
        return named | {"logits_quarter": coarse, "aux_logits": auxiliary, "logits": model(golden.image)}
    scores, offsets = model.rpn_head(maps)
    named = {f"fpn{i}": m for i, m in enumerate(maps)}
    named |= {f"rpn_cls{i}": m for i, m in enumerate(scores)} | {f"rpn_box{i}": m for i, m in enumerate(offsets)}
    logits, boxes = model.classify(maps, golden.tensors["rois"])
    return named | {"roi_cls": logits, "roi_box": boxes, "roi_mask": model.segment(maps, golden.tensors["rois"])}


@torch.no_grad()
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", ["upernet", "mask_rcnn"])
def test_every_step_is_the_authors(name: str, precision: str) -> None:
    golden, model = golden_model(name)
    frozen = vmamba.freeze(model, precision)
    eager = steps(model, golden)
    for step, got in steps(frozen, golden).items():
        assert relative_error(got, eager[step]) < TOLERANCE[precision], step
        assert relative_error(got, golden.tensors[step]) < max(1e-4, TOLERANCE[precision]), step
        assert (precision == "float32") or not torch.equal(got, eager[step]), step


@torch.no_grad()
def test_detections_are_the_authors() -> None:
    golden, model = golden_model("mask_rcnn")
    (found,) = vmamba.freeze(model)(golden.image)
    torch.testing.assert_close(found.boxes, golden.tensors["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, golden.tensors["scores"], atol=1e-3, rtol=0)
    assert torch.equal(found.labels, golden.tensors["labels"])


@pytest.mark.parametrize("name", ["upernet", "mask_rcnn"])
def test_it_says_what_was_done_to_heads(name: str) -> None:
    first = str(vmamba.freeze(golden_model(name)[1], "int8")).splitlines()[0]
    expected = {
        "upernet": ("13 × ConvNormReLU, packed", "2 × Conv2d, packed", "4 × LayerNorm, called"),
        "mask_rcnn": ("16 × Conv2d, packed", "4 × Linear, packed", "1 × ConvTranspose2d, packed"),
    }
    for part in expected[name]:
        assert part in first


@torch.no_grad()
@pytest.mark.parametrize("name", ["upernet", "mask_rcnn"])
def test_threads_share_them_and_copies_agree(name: str) -> None:
    golden, model = golden_model(name)
    frozen = vmamba.freeze(model, "int8")
    expected = steps(frozen, golden)
    again = pickle.loads(pickle.dumps(frozen))
    with ThreadPoolExecutor(3) as pool:
        for got in pool.map(lambda each: torch.no_grad()(steps)(each, golden), (frozen, frozen, again)):
            for step, truth in expected.items():
                assert relative_error(got[step], truth) < 1e-5, step
    with pytest.raises(RuntimeError, match=r"^a frozen model cannot be"):
        frozen.load_state_dict(model.state_dict())
    for parameter in frozen.parameters():
        parameter.data.zero_()
    assert relative_error(steps(frozen, golden)[step], truth) < 1e-5


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("int8", 1e-3)])
def test_compiled(precision: str, tolerance: float) -> None:
    """In int8 the last bit of a resized map, which compiling may change, may round a value to its neighbour."""
    golden, model = golden_model("upernet")
    frozen = vmamba.freeze(model, precision)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(golden.image), frozen(golden.image)) < tolerance
