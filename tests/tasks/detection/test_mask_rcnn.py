"""The authors' detector: their outputs from their weights, and losses that teach."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from support.golden import GOLDEN, Golden, relative_error, synthetic_state_dict
from vmamba import VMambaConfig
from vmamba.checkpoints.names import to_our_names
from vmamba.model.variants import VARIANTS
from vmamba.tasks.detection.detections import Detections
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig

NAMES = json.loads((GOLDEN / "dense" / "mask_rcnn.json").read_text())


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.load(GOLDEN / "dense" / "mask_rcnn_128x160.safetensors")


@pytest.fixture(scope="module")
def model(golden: Golden) -> MaskRCNN:
    backbone = VMambaConfig.from_author_options(golden.metadata["backbone"])
    config = MaskRCNNConfig(backbone, tuple("abcde"), channels=16, box_channels=32, mask_channels=16)
    model = MaskRCNN(config).eval()
    model.load_state_dict(to_our_names(synthetic_state_dict(NAMES["mask_rcnn_golden"])), strict=True)
    return model


@torch.no_grad()
def test_every_step_is_the_authors(model: MaskRCNN, golden: Golden) -> None:
    expected = golden.tensors
    maps = model.features(golden.image)
    scores, offsets = model.rpn_head(maps)
    for i in range(5):
        assert relative_error(maps[i], expected[f"fpn{i}"]) < 1e-4
        assert relative_error(scores[i], expected[f"rpn_cls{i}"]) < 1e-4
        assert relative_error(offsets[i], expected[f"rpn_box{i}"]) < 1e-4
    logits, boxes = model.classify(maps, expected["rois"])
    assert relative_error(logits, expected["roi_cls"]) < 1e-4
    assert relative_error(boxes, expected["roi_box"]) < 1e-4
    assert relative_error(model.segment(maps, expected["rois"]), expected["roi_mask"]) < 1e-4


@torch.no_grad()
def test_proposals_are_the_authors(model: MaskRCNN, golden: Golden) -> None:
    scores, offsets = model.rpn_head(model.features(golden.image))
    ((boxes, values),) = model.propose(scores, offsets, [(128, 160)])
    expected = golden.tensors["proposals"]
    torch.testing.assert_close(values, golden.tensors["proposal_scores"], atol=1e-5, rtol=0)
    # Two that score alike may change places.
    distance = (boxes[:, None] - expected[None]).abs().amax(-1)
    assert distance.amin(dim=1).max() < 1e-3
    assert distance.amin(dim=0).max() < 1e-3


@torch.no_grad()
def test_detections_are_the_authors(model: MaskRCNN, golden: Golden) -> None:
    expected = golden.tensors
    (found,) = model(golden.image)
    torch.testing.assert_close(found.boxes, expected["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-3, rtol=0)
    assert torch.equal(found.labels, expected["labels"])
    _, masks = found.in_image((128, 160))
    assert (masks[: len(expected["masks"])] != expected["masks"].bool()).float().mean() < 1e-4


@pytest.mark.parametrize("entry", [name for name in NAMES if name != "mask_rcnn_golden"])
def test_released_detectors_fit(entry: str) -> None:
    name = "vmamba_" + entry.removeprefix("mask_rcnn_").removesuffix("_coco")
    with torch.device("meta"):
        authors = {n: torch.empty(shape) for n, shape in NAMES[entry].items()}
        expected = MaskRCNN(MaskRCNNConfig(VARIANTS[name].config, tuple("c" * 80))).state_dict()
    ours = to_our_names(authors)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in expected.items()}


def small(classes: int = 3) -> MaskRCNN:
    torch.manual_seed(0)
    backbone = VMambaConfig(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))
    return MaskRCNN(MaskRCNNConfig(backbone, tuple("abcdef"[:classes]), 16, 32, 16))


def target(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (64, 96)) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *size)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    return {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.arange(len(boxes)), "masks": masks}


def test_every_parameter_learns() -> None:
    model = small().train()
    images = torch.randn(2, 3, 64, 96)
    targets = [target((4, 4, 40, 44), (50, 10, 90, 60)), target((20, 8, 80, 40))]
    losses = model(images, [(64, 96), (50, 96)], targets)
    assert set(losses) == {"proposal_class", "proposal_box", "class", "box", "mask"}
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_images_without_anything_still_teach() -> None:
    model = small().train()
    losses = model(torch.randn(1, 3, 64, 64), targets=[target(size=(64, 64))])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["box"] == losses["mask"] == 0
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", [(32, 32), (37, 101), (130, 75)])
@torch.no_grad()
def test_any_size_and_padding(size: tuple[int, int]) -> None:
    """Padding changes nothing but what the backbone sees of it; boxes stay on the image."""
    model = small().eval()
    image = torch.randn(1, 3, *size)
    found: list[Detections] = model(torch.cat([image, image]), [size, (size[0] // 2, size[1])])
    for detections, height in zip(found, (size[0], size[0] // 2), strict=True):
        assert (detections.boxes >= 0).all()
        assert (detections.boxes[:, 3] <= height).all()
        assert (detections.scores.diff() <= 0).all()
        assert detections.masks.shape[1:] == (28, 28)
        boxes, masks = detections.in_image((2 * size[0], 3 * size[1]), (0.5, 1 / 3))
        assert masks.shape == (len(boxes), 2 * size[0], 3 * size[1])


def test_mixed_precision_losses_are_finite() -> None:
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(torch.randn(1, 3, 64, 96), targets=[target((4, 4, 40, 44))])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
