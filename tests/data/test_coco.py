"""COCO's layout: what is used, what is left out and counted, what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.coco import write_coco
from vmamba.data import coco
from vmamba.data.annotations import AnnotationError
from vmamba.data.coco import CocoInstances, find_split
from vmamba.errors import DataError, ImageError


def test_class_lists() -> None:
    assert len(coco.CLASSES) == len(coco.CATEGORY_IDS) == 80
    assert coco.CATEGORY_IDS[-1] == 90
    assert dict(zip(coco.CATEGORY_IDS, coco.CLASSES, strict=True))[13] == "stop sign"


def another(content: dict[str, Any], **values: Any) -> None:
    content["annotations"].append(dict(content["annotations"][0], id=3, **values))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"bbox": [5, 5, 0, 10]}, "boxes without area"),
        ({"area": 0}, "boxes without area"),
        ({"bbox": [60, 5, 10, 10]}, "boxes outside their image"),
        ({"segmentation": []}, "instances without a mask"),
        ({"segmentation": [[5, 5, 5, 15, 5, 10]]}, "instances whose mask has no pixel"),
        ({"segmentation": {"size": [40, 50], "counts": [2000]}}, "instances whose mask has no pixel"),
        ({"segmentation": {"size": [40, 50], "counts": "`n1"}}, "instances whose mask has no pixel"),
    ],
)
def test_instances_that_teach_nothing_are_left_out_and_counted(tmp_path: Path, values: Any, reason: str) -> None:
    split = write_coco(tmp_path, lambda c: another(c, **values))
    data = CocoInstances(split, training=True)
    assert data.left_out == {reason: 1}
    assert len(data[0]["boxes"]) == 1
    with pytest.raises(AnnotationError, match=f"has 1 {reason}; without --strict they are left out"):
        CocoInstances(split, training=True, strict=True)


def test_crowds_empty_images_and_boxes_across_the_border(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        another(content, iscrowd=1)
        another(content, bbox=[45, 30, 20, 20])
        content["images"].append(dict(content["images"][0], id=9))
        content["images"].append({"id": 10, "file_name": "7.png", "width": 50, "height": 20})
        another(content, image_id=10)

    split = write_coco(tmp_path, change)
    data = CocoInstances(split, training=True)
    assert data.left_out == {"images without instances to learn from": 1, "images with a side below 32 pixels": 1}
    assert data[0]["boxes"].tolist() == [[5, 5, 15, 15], [45, 30, 50, 40]]
    assert len(CocoInstances(split, training=False)) == 4


def test_summary(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"] += [{"id": 5, "name": "rare"}, {"id": 6, "name": "thing"}]
        another(content, category_id=6)
        another(content, bbox=[5, 5, 0, 10])

    split = write_coco(tmp_path, change)
    summary = CocoInstances(split, training=True).summary("train")
    assert (summary.images, summary.unit, dict(summary.counts)) == (2, "instances", {"thing": 3, "rare": 0})
    assert summary.left_out == {"boxes without area": 1}
    assert summary.notes == ["several categories have the name 'thing'"]
    (split.images / "8.png").write_bytes(b"")
    (line,) = CocoInstances(split, training=True).summary("train", verify=True).unreadable
    assert "8.png: the file is empty" in line


def test_boxes_alone_are_not_enough(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation.pop("segmentation")

    split = write_coco(tmp_path, change)
    with pytest.raises(
        AnnotationError, match=r"leaves no image to train on, 2 instances without a mask, .* boxes alone"
    ):
        CocoInstances(split, training=True)
    assert len(CocoInstances(split, training=False)) == 2


def test_images_that_are_not_there(tmp_path: Path) -> None:
    split = write_coco(tmp_path, lambda c: c["images"].append(dict(c["images"][0], id=9, file_name="sub/9.png")))
    with pytest.raises(AnnotationError, match=r'1 of its 3 images are missing in .*/val, "sub/9\.png" first'):
        CocoInstances(split, training=False)
    (split.images / "sub").mkdir()
    Image.new("RGB", (50, 40)).save(split.images / "sub" / "9.png")
    assert len(CocoInstances(split, training=False)) == 3


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotations/instances_train\*\.json; exactly one"):
        find_split(tmp_path, "train")
    split = write_coco(tmp_path)
    split.images.rename(tmp_path / "other")
    with pytest.raises(DataError, match="has no folder of images val beside annotations"):
        find_split(tmp_path, "val")


def test_sizes_differ(tmp_path: Path) -> None:
    data = CocoInstances(write_coco(tmp_path, lambda c: c["images"][0].update(width=51)), training=True)
    with pytest.raises(ImageError, match=r"7\.png: is 50×40 pixels, its annotation says 51×40"):
        data[0]


@pytest.mark.parametrize("annotated", [(40, 50), (50, 40)])
def test_images_turned_by_exif(tmp_path: Path, annotated: tuple[int, int]) -> None:
    """The size of the annotations tells whether they are of the upright image or of the stored one."""
    split = write_coco(tmp_path, lambda c: c["images"][0].update(width=annotated[0], height=annotated[1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(split.images / "7.png", exif=exif)
    sample = CocoInstances(split, training=True)[0]
    assert sample["image"].shape[1:] == annotated[::-1]
    assert sample["masks"].shape[1:] == annotated[::-1]
