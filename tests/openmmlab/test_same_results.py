"""Our Mask R-CNN and UperNet against MMDetection's and MMSegmentation's, on sizes that nothing divides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from support.toolboxes import OPTIONS, build, config, shrink
from vmamba import VMambaConfig
from vmamba.checkpoints.loading import load_whole
from vmamba.checkpoints.names import to_our_names
from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.tasks.detection import mask_rcnn
from vmamba.tasks.detection.boxes import sample
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.inference import Inference, segment
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig

SIZES = [(97, 131), (203, 150), (319, 417), (33, 500)]
BACKBONE = VMambaConfig.from_author_options(OPTIONS)


def randomise(model: torch.nn.Module) -> None:
    """Weights as varied as trained ones are."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.ndim > 1 and tensor.is_floating_point() and not name.endswith(("A_log", "dt_proj_bias", "D")):
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith("bias") and tensor.ndim == 1:
            tensor.normal_(std=0.1)


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, MaskRCNN]:
    settings = shrink("detection", config("detection", tmp_path_factory.mktemp("detection")))
    # Every anchor and proposal is learnt from, so that nothing is drawn.
    settings.model.train_cfg.rpn.sampler.num = settings.model.train_cfg.rcnn.sampler.num = 10**7
    theirs = build("detection", settings)
    randomise(theirs)
    ours = MaskRCNN(MaskRCNNConfig(BACKBONE, tuple("abcde"), 16, 32, 16))
    ours.load_state_dict(to_our_names(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_detections(detectors: tuple[Any, MaskRCNN], size: tuple[int, int]) -> None:
    theirs, ours = (model.eval() for model in detectors)
    original = (size[0] * 2 + 1, size[1] * 2 - 1)
    scale = (size[0] / original[0], size[1] / original[1])
    torch.manual_seed(1)
    image = torch.randn(1, 3, *size)
    facts = {"img_shape": size, "ori_shape": original, "scale_factor": scale[::-1]}
    expected = theirs.predict(image, [DetDataSample(metainfo=facts)], rescale=True)[0].pred_instances
    (found,) = ours(image)
    boxes, masks = found.in_image(original, scale)
    assert len(boxes) > 10
    torch.testing.assert_close(boxes, expected.bboxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-3, rtol=0)
    assert torch.equal(found.labels, expected.labels)
    assert (masks != expected.masks).float().mean() < 1e-5


def test_losses_and_gradients(detectors: tuple[Any, MaskRCNN], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two images, one of them padded, with boxes that no anchor fits well."""
    from mmdet.structures.mask import BitmapMasks

    theirs, ours = (model.train() for model in detectors)
    monkeypatch.setattr(mask_rcnn, "sample", lambda assigned, num, pos_fraction: sample(assigned, 10**7, pos_fraction))
    torch.manual_seed(1)
    images, sizes = torch.randn(2, 3, 128, 160), [(128, 131), (90, 160)]
    boxes = [
        torch.tensor([[4.0, 6, 60, 70], [50, 20, 120, 110], [3, 90, 12, 99]]),
        torch.tensor([[10.5, 3, 150, 80], [70, 30, 76, 36]]),
    ]
    labels = [torch.tensor([0, 3, 4]), torch.tensor([1, 2])]
    targets, samples = [], []
    for box, label, size in zip(boxes, labels, sizes, strict=True):
        masks = np.zeros((len(box), 128, 160), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, box.int().tolist(), strict=True):
            mask[y1 : y2 - 2, x1 + 1 : x2] = 1
        targets.append({"boxes": box, "labels": label, "masks": torch.from_numpy(masks)})
        padded = tuple(-(-side // 32) * 32 for side in size)
        known = {"img_shape": size, "pad_shape": padded, "batch_input_shape": (128, 160)}
        sample_of = DetDataSample(metainfo=known)
        sample_of.gt_instances = InstanceData(bboxes=box, labels=label, masks=BitmapMasks(masks, 128, 160))
        sample_of.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample_of)
    expected = theirs.loss(images, samples)
    found = ours(images, sizes, targets)
    for mine, name in (
        ("proposal_class", "loss_rpn_cls"),
        ("proposal_box", "loss_rpn_bbox"),
        ("class", "loss_cls"),
        ("box", "loss_bbox"),
        ("mask", "loss_mask"),
    ):
        value = expected[name]
        torch.testing.assert_close(found[mine], sum(value) if isinstance(value, list) else value.squeeze())
    for model, losses in ((theirs, expected), (ours, found)):
        model.zero_grad()
        sum(sum(v) if isinstance(v, list) else v for n, v in losses.items() if n != "acc").backward()
    gradients = to_our_names({n: p.grad for n, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, UperNet]:
    theirs = build("segmentation", shrink("segmentation", config("segmentation", tmp_path_factory.mktemp("seg"))))
    randomise(theirs)
    ours = UperNet(UperNetConfig(BACKBONE, tuple("abcde"), channels=16, auxiliary_channels=8))
    load_whole(ours, open_checkpoint(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("window", [None, (96, 64), (128, 85)])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_segmentation(segmenters: tuple[Any, UperNet], size: tuple[int, int], window: tuple[int, int] | None) -> None:
    """Whole and in windows, at the size of the image and at another, mirrored or not."""
    theirs, ours = (model.eval() for model in segmenters)
    theirs.test_cfg.update(mode="slide" if window else "whole")
    inference = Inference(None)
    if window:
        theirs.test_cfg.update(crop_size=(window[0],) * 2, stride=(window[1],) * 2)
        inference = Inference(None, window=window[0], stride=window[1])
    torch.manual_seed(1)
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    (x,) = inference.inputs(image)
    original = (size[0] + 31, size[1] - 14)
    for shape in (size, original):
        facts = {"img_shape": size, "ori_shape": shape}
        result = theirs.predict(x, [SegDataSample(metainfo=facts)])[0]
        expected = result.pred_sem_seg.data[0]
        if shape == size:
            found = segment(ours, image, inference)
            if window is None:
                torch.testing.assert_close(ours(x)[0], result.seg_logits.data, atol=1e-4, rtol=1e-4)
        else:  # as if the image had been resized to `size` before
            resized = Inference(None, window=inference.window, stride=inference.stride)
            object.__setattr__(resized, "inputs", lambda _: iter([x]))
            found = segment(ours, torch.empty(3, *shape, dtype=torch.uint8), resized)
        assert found.shape == shape
        assert (found != expected).float().mean() < 1e-4


@torch.no_grad()
def test_scales_and_mirror_images(segmenters: tuple[Any, UperNet]) -> None:
    from mmseg.models.segmentors import SegTTAModel

    theirs, ours = (model.eval() for model in segmenters)
    theirs.test_cfg.update(mode="whole")
    torch.manual_seed(1)
    image = torch.randint(256, (3, 97, 131), dtype=torch.uint8)
    inference = Inference(None, scales=(0.5, 1.0, 1.75), flip=True)
    predicted = []
    for x in inference.inputs(image):
        for flip in (False, True):
            facts: dict[str, Any] = {"img_shape": x.shape[2:], "ori_shape": (97, 131), "img_path": ""}
            facts |= {"flip": flip, "flip_direction": "horizontal" if flip else None}
            predicted += theirs.predict(x.flip(3) if flip else x, [SegDataSample(metainfo=facts)])
    merger = SegTTAModel.__new__(SegTTAModel)
    torch.nn.Module.__init__(merger)
    merger.module = theirs
    expected = merger.merge_preds([predicted])[0].pred_sem_seg.data
    assert (segment(ours, image, inference) != expected).float().mean() < 1e-4


def test_segmentation_losses(segmenters: tuple[Any, UperNet]) -> None:
    theirs, ours = (model.eval() for model in segmenters)  # no dropout, fixed statistics
    torch.manual_seed(1)
    images, labels = torch.randn(2, 3, 97, 131), torch.randint(5, (2, 97, 131))
    labels[:, :30] = 255
    samples = []
    for label in labels:
        one = SegDataSample(metainfo={"img_shape": (97, 131)})
        one.gt_sem_seg = PixelData(data=label[None])
        samples.append(one)
    expected, found = theirs.loss(images, samples), ours(images, labels)
    torch.testing.assert_close(found["decode"], expected["decode.loss_ce"])
    torch.testing.assert_close(found["auxiliary"], expected["aux.loss_ce"])


def test_configuration_files_are_where_they_are_looked_for(tmp_path: Path) -> None:
    assert config("detection", tmp_path).model.backbone.type == "MM_VSSM"
