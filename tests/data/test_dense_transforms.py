"""Augmentation for detection and segmentation: what belongs together stays together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vmamba.data.coco import CocoInstances, find_split
from vmamba.data.dense_transforms import (
    RandomCrop,
    detection_evaluation,
    detection_training,
    rescale_size,
    segmentation_training,
)
from vmamba.data.label_maps import IGNORE_INDEX
from vmamba.data.seeding import seeded
from vmamba.data.segmentation_folder import SegmentationFolder


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1067)), ((300, 1000), (400, 1333)), ((7, 5), (1120, 800))]
)
def test_sizes_are_those_of_the_published_preprocessing(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert rescale_size(size, 800, 1333) == expected


@pytest.mark.parametrize("schedule", ["1x", "3x"])
def test_boxes_follow_their_masks(shapes: Path, schedule: str) -> None:
    data = CocoInstances(find_split(shapes / "coco", "train"), training=True)
    data.transform = detection_training(schedule, 96, 160)
    sizes = set()
    for i in range(12):
        with seeded(i):
            sample = data[i]
        height, width = sample["image"].shape[1:]
        sizes.add((height, width))
        assert sample["masks"].shape == (len(sample["boxes"]), height, width)
        assert sample["image"].dtype == torch.float32
        for box, mask in zip(sample["boxes"], sample["masks"], strict=True):
            if mask.sum() > 60 and box[0] > 2 and box[2] < width - 2:
                columns = mask.any(dim=0).nonzero()
                assert abs(float(columns.min()) - float(box[0])) < 6  # thin tips are lost
                assert abs(float(columns.max()) + 1 - float(box[2])) < 6  # thin tips are lost
    assert len(sizes) > 3
    data.transform = detection_evaluation(96, 160)
    assert min(data[0]["image"].shape[1:]) == 96


def test_scenes_are_cropped_with_their_labels(shapes: Path) -> None:
    scenes = SegmentationFolder(shapes / "ade20k", "train", segmentation_training(96, 64, 256, (0.5, 2.0)))
    for i in range(6):
        with seeded(i):
            sample = scenes[i]
        assert sample["image"].shape == (3, 96, 96)
        assert sample["labels"].shape == (96, 96)
        padded = (sample["image"] == 0).all(dim=0)
        assert (sample["labels"][padded] == IGNORE_INDEX).all()


def test_crops_avoid_a_single_class(shapes: Path) -> None:
    sample = SegmentationFolder(shapes / "ade20k", "train")[3]
    sample["labels"][:, :32], sample["labels"][:, 32:] = 0, 1
    with seeded(0):
        crops = [RandomCrop(24)(sample)["labels"] for _ in range(20)]
    varied = [crop for crop in crops if len(crop.unique()) > 1]
    assert len(varied) >= 15
