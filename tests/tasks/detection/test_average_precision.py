"""COCO's evaluation equals pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from support.coco import Change, perfect_detections, write_coco
from vmamba.data.coco import find_split
from vmamba.data.coco_file import read_coco
from vmamba.data.shapes import CATEGORY_IDS, pictures, write_shapes
from vmamba.tasks.detection.average_precision import as_results, average_precision


def test_equal_to_pycocotools(tmp_path: Path) -> None:
    write_shapes(tmp_path, train=1, val=40, image_size=64)
    annotations = find_split(tmp_path / "coco", "val").annotations
    torch.manual_seed(0)
    results = []
    for i, (picture, shapes) in enumerate(pictures(40, 64, seed=1)):
        masks, labels = [], []
        for shape in shapes:
            for _ in range(2):  # moved a little, sometimes of another class
                moved = torch.from_numpy(shape.mask.copy()).roll(tuple(torch.randint(-4, 5, (2,)).tolist()), (0, 1))
                masks.append(moved)
                labels.append(shape.label if torch.rand(()) < 0.7 else int(torch.randint(4, ())))
        if masks:
            stack = torch.stack(masks)
            boxes = torch.tensor([[*m.nonzero().amin(0).flip(0), *(m.nonzero().amax(0) + 1).flip(0)] for m in masks])
            scores = torch.rand(len(masks))
            results += as_results(1 + 3 * i, boxes.float(), scores, torch.tensor(labels), stack, CATEGORY_IDS)
            assert stack.shape[1:] == (picture.height, picture.width)
    ids = {1 + 3 * i for i in range(40)}
    numbers = average_precision(read_coco(annotations), results, ids, tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        for kind, prefix, other in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
            found = truth.loadRes([{k: v for k, v in r.items() if k != other} for r in results])
            evaluation = COCOeval(truth, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            expected = [100 * v for v in evaluation.stats[:4]]
            got = [numbers[f"{prefix}_{name}"] for name in ("ap", "ap50", "ap75", "ap_small")]
            assert got == pytest.approx(expected, abs=1e-6)
            assert 5 < expected[0] < 90
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == results
    rows = (tmp_path / "out" / "average_precision.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["class", "disc", "square", "triangle", "star"]


def test_nothing_found_is_zero(tmp_path: Path) -> None:
    write_shapes(tmp_path, train=1, val=2, image_size=64)
    truth = read_coco(find_split(tmp_path / "coco", "val").annotations)
    numbers = average_precision(truth, [], [image["id"] for image in truth.images])
    assert numbers["box_ap"] == numbers["mask_ap50"] == 0


def same_id(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["id"] = 5


def add(**values: Any) -> Change:
    """Another object in the first image."""
    return lambda content: content["annotations"].append(dict(content["annotations"][0], id=9, **values))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: None,
        lambda c: c["annotations"][0].update(id=0),
        same_id,
        lambda c: [annotation.pop("id") for annotation in c["annotations"]],
        lambda c: [annotation.pop("area") for annotation in c["annotations"]],
        lambda c: c["images"][0].update(id=0) or c["annotations"][0].update(image_id=0),
        lambda c: c["categories"][0].update(id=0) or [a.update(category_id=0) for a in c["annotations"]],
        lambda c: c["annotations"][0].update(iscrowd=True),
        lambda c: c["annotations"][0].pop("segmentation"),
        lambda c: c["annotations"][0].update(segmentation=[[5, 5, 5, 15, 5, 10]]),
        add(bbox=[1, 1, 0, 5]),
        add(bbox=[60, 5, 10, 10]),
    ],
    ids=[
        "as usual", "id 0", "ids twice", "no ids", "no areas", "image 0", "category 0", "crowd", "no mask", "no pixel",
        "box without area", "box outside",
    ],
)  # fmt: skip
def test_a_perfect_detector_gets_everything(tmp_path: Path, change: Change) -> None:
    truth = read_coco(write_coco(tmp_path, change).annotations)
    seen = {image["id"] for image in truth.images}
    numbers = average_precision(truth, perfect_detections(truth, seen), seen)
    assert numbers["box_ap"] == pytest.approx(100)
    assert numbers["mask_ap"] == pytest.approx(100)


def test_images_that_were_not_read_do_not_count(tmp_path: Path) -> None:
    truth = read_coco(write_coco(tmp_path).annotations)
    numbers = average_precision(truth, perfect_detections(truth, {8}), {8})
    assert numbers["box_ap"] == pytest.approx(100)
    assert numbers["mask_ap"] == pytest.approx(100)
    assert average_precision(truth, perfect_detections(truth, {8}), {7, 8})["box_ap"] == pytest.approx(50, abs=1)


def test_nothing_to_find_is_not_a_number(tmp_path: Path) -> None:
    """Images without objects, classes without objects, no image at all."""
    truth = read_coco(write_coco(tmp_path, lambda c: c["annotations"].clear()).annotations)
    for seen in ({7, 8}, set[int]()):
        assert all(math.isnan(value) for value in average_precision(truth, [], seen).values())
    truth = read_coco(write_coco(tmp_path, lambda c: c["categories"].append({"id": 4, "name": "rare"})).annotations)
    assert average_precision(truth, [], {7, 8}, tmp_path)["box_ap"] == 0
    assert (tmp_path / "average_precision.csv").read_text().splitlines()[1:] == ["thing,0.00,0.00", "rare,,"]
    assert (tmp_path / "detections.json").read_text() == "[]"
