"""Annotation files: every fault is named with its place, its value and what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.coco import Change, write_coco
from vmamba.data.annotations import MAX_FAULTS, AnnotationError
from vmamba.data.coco_file import read_coco


def changed(**values: Any) -> Change:
    """Replace fields of the second annotation."""
    return lambda content: content["annotations"][1].update(values)


def image(**values: Any) -> Change:
    """Replace fields of the second image."""
    return lambda content: content["images"][1].update(values)


SQUARE = [5, 5, 15, 5, 15, 15, 5, 15]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (changed(bbox=[1, 2]), "annotations[1].bbox[2] is missing"),
        (changed(bbox=[1, 2, "3", 4]), 'annotations[1].bbox[2] is "3", not a number'),
        (changed(bbox=[1, 2, 3, -4]), "annotations[1].bbox[3] is -4, not greater than or equal to 0"),
        (changed(bbox=[1, float("nan"), 3, 4]), "annotations[1].bbox[1] is NaN, not a finite number"),
        (changed(bbox=[1, float("inf"), 3, 4]), "annotations[1].bbox[1] is Infinity, not a finite number"),
        (changed(bbox={"x": 1}), 'annotations[1].bbox is {"x": 1}, not a list'),
        (
            changed(bbox=[1, 2, 1e30, 4]),
            "annotations[1] (id 2).bbox reaches to x = 1e+30, far outside the image of 50×40",
        ),
        (changed(bbox=None), "annotations[1].bbox is null, not a list"),
        (changed(image_id=None), "annotations[1].image_id is null, not a whole number"),
        (changed(image_id=2**70), "annotations[1].image_id is 1180591620717411303424, not less than or equal to"),
        (changed(image_id=9), "annotations[1] (id 2).image_id is 9, which none of the images has"),
        (changed(category_id=9), "annotations[1] (id 2).category_id is 9, not one of 3"),
        (changed(category_id="thing"), 'annotations[1].category_id is "thing", not a whole number'),
        (changed(iscrowd=2), "annotations[1].iscrowd is 2, not 0, 1, False or True"),
        (changed(area="big"), 'annotations[1].area is "big", not a number'),
        (changed(segmentation=7), "annotations[1].segmentation is 7, not a list"),
        (changed(segmentation=[7]), "annotations[1].segmentation[0] is 7, not a list"),
        (changed(segmentation=[[7, None]]), "annotations[1].segmentation[0][1] is null, not a number"),
        (changed(segmentation=[SQUARE, [5, 5, 10, 10]]), "annotations[1] (id 2).segmentation[1] has 4 numbers"),
        (changed(segmentation={"size": [40, 50]}), "annotations[1].segmentation.counts is missing"),
        (changed(segmentation={"size": [40], "counts": ""}), "annotations[1].segmentation.size[1] is missing"),
        (
            changed(segmentation={"size": [40, 50], "counts": [1, "2"]}),
            'segmentation.counts[1] is "2", not a whole num',
        ),
        (
            changed(segmentation={"size": [50, 40], "counts": [2000]}),
            "has the size [50, 40], its image [40, 50]; height",
        ),
        (changed(segmentation={"size": [10**9, 10**9], "counts": [1]}), "not less than or equal to 1048576"),
        (changed(segmentation={"size": [40, 50], "counts": [1]}), "has runs of 1 pixels together, its image has 2,000"),
        (changed(segmentation={"size": [40, 50], "counts": "zz"}), "has run lengths that cannot be decoded"),
        (image(height=0), "images[1].height is 0, not greater than or equal to 1"),
        (image(width=10**12), "images[1].width is 1000000000000, not less than or equal to 1048576"),
        (image(width=10**6, height=10**6), "images[1] has 1000000×1000000 pixels, the limit is 178,956,970 together"),
        (image(width=50.5), "images[1].width is 50.5, not a whole number"),
        (image(file_name=""), 'images[1].file_name is "": string should have at least 1'),
        (image(file_name=3), "images[1].file_name is 3, not text"),
        (image(file_name="../8.png"), 'images[1].file_name is "../8.png", not a name below the folder of images'),
        (image(file_name="/8.png"), 'images[1].file_name is "/8.png", not a name below the folder of images'),
        (image(id=7), "2 of images have the id 7"),
        (lambda c: c["images"][1].pop("width"), "images[1].width is missing"),
        (lambda c: c["images"].append(None), "images[2] is null, not an object"),
        (lambda c: c.pop("categories"), "categories is missing"),
        (lambda c: c["categories"].clear(), "categories is []: list should have at least 1 item"),
        (lambda c: c["categories"].append({"id": 3}), "2 of categories have the id 3"),
        (lambda c: c.update(annotations={}), "annotations is {}, not a list"),
    ],
)
def test_faults(tmp_path: Path, change: Change, fault: str) -> None:
    split = write_coco(tmp_path, change)
    with pytest.raises(AnnotationError) as error:
        read_coco(split.annotations)
    assert str(split.annotations) in str(error.value)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not JSON: EOF while parsing"),
        ("", "is not JSON"),
        ("[]", "is not COCO's format, an object with the lists images, annotations, categories"),
        ("[" * 100_000, "is not JSON: recursion limit exceeded"),
        ("\ud800", "is not JSON"),
    ],
)
def test_other_files(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(AnnotationError, match=fault):
        read_coco(path)
    with pytest.raises(AnnotationError, match="cannot be read: No such file"):
        read_coco(tmp_path / "gone.json")


def test_what_exporters_write_is_read(tmp_path: Path) -> None:
    """Sizes with a decimal point, booleans, fields of their own, null and empty masks, a byte order mark."""

    def change(content: dict[str, Any]) -> None:
        content["images"][1].update(width=50.0, license=None)
        content["annotations"][0].update(iscrowd=False, segmentation=None, id="a")
        content["annotations"][1].update(iscrowd=True, segmentation=[[]], id=None, area=None)
        content["info"] = {"year": 2026}

    split = write_coco(tmp_path, change)
    split.annotations.write_bytes(b"\xef\xbb\xbf" + split.annotations.read_bytes())
    file = read_coco(split.annotations)
    assert file.images[1] == {"id": 8, "file_name": "8.png", "width": 50, "height": 40}
    assert [not entry.get("segmentation") for entry in file.annotations] == [True, True]


def test_many_faults_are_counted(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"] = [dict(content["annotations"][0], category_id=i) for i in range(10, 410)]

    with pytest.raises(AnnotationError, match="400 faults: ") as error:
        read_coco(write_coco(tmp_path, change).annotations)
    assert str(error.value).endswith("; and 397 more, see vmamba check-data")
    assert len(error.value.faults) == MAX_FAULTS


def test_categories_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    split = write_coco(tmp_path, lambda c: c["categories"].insert(0, {"id": 5, "name": "last"}))
    assert [category["id"] for category in read_coco(split.annotations).categories] == [3, 5]
