"""The drawn shapes come back from both formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from vmamba.data.coco import CocoInstances, find_split
from vmamba.data.label_maps import IGNORE_INDEX
from vmamba.data.segmentation_folder import SegmentationFolder
from vmamba.data.shapes import CLASSES, pictures


def test_shapes_come_back_from_both_formats(shapes: Path) -> None:
    data = CocoInstances(find_split(shapes / "coco", "train"), training=True)
    scenes = SegmentationFolder(shapes / "ade20k", "train")
    assert data.classes == CLASSES
    assert scenes.classes == ("background", *CLASSES)
    drawn = list(pictures(30, 64, seed=0))
    kinds = set()
    for picture in range(len(data)):
        sample = data[picture]
        index = int(Path(sample["file"]).stem)
        things = [s for s in drawn[index][1] if not s.crowd]
        assert sample["labels"].tolist() == [s.label for s in things]
        for mask, box, thing in zip(sample["masks"], sample["boxes"], things, strict=True):
            kinds.add(thing.polygon is None)
            read = mask.numpy().astype(bool)
            if thing.polygon is None:
                assert (read & thing.mask).sum() / (read | thing.mask).sum() > 0.99
            else:  # its edge is rounded another way, by a pixel at most
                around = np.ones((3, 3))
                assert read[binary_erosion(thing.mask, around)].all()
                assert not read[~binary_dilation(thing.mask, around)].any()
            rows, columns = np.nonzero(thing.mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        labels = scenes[index]["labels"].numpy()
        for thing in things:
            inside = labels[thing.mask]
            assert set(np.unique(inside)) <= {thing.label + 1, IGNORE_INDEX}
    assert kinds == {True, False}  # run lengths and polygons
