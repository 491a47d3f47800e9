"""COCO's and ADE20K's formats: what the shapes write is read back, what is wrong is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image

from vmamba.data import ade20k, coco
from vmamba.data.ade20k import SceneParsing
from vmamba.data.coco import AnnotationError, CocoInstances, Split, decode_mask, encode_mask, find_split
from vmamba.data.dense_transforms import (
    CropVaried,
    detection_evaluation,
    detection_training,
    fit,
    segmentation_training,
)
from vmamba.data.grouping import AspectGroupedLoader
from vmamba.data.randomness import seeded
from vmamba.data.shapes import CLASSES, pictures, write_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=30, val=6, side=64)
    return root


def test_shapes_come_back_from_both_formats(shapes: Path) -> None:
    data = CocoInstances(find_split(shapes / "coco", "train"), training=True)
    scenes = SceneParsing(shapes / "ade20k", "train")
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
            overlap = (mask.numpy().astype(bool) & thing.mask).sum() / (mask.numpy().astype(bool) | thing.mask).sum()
            assert overlap > (0.99 if thing.polygon is None else 0.75)  # a polygon's edge is rounded another way
            rows, columns = np.nonzero(thing.mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        labels = scenes[index]["labels"].numpy()
        for thing in things:
            inside = labels[thing.mask]
            assert set(np.unique(inside)) <= {thing.label + 1, ade20k.IGNORED}
    assert kinds == {True, False}  # run lengths and polygons


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_every_kind_of_mask() -> None:
    mask = torch.zeros(7, 9, dtype=torch.uint8)
    mask[2:5, 3:8] = 1
    compressed = encode_mask(mask)
    plain = {"size": [7, 9], "counts": [int(n) for n in _runs(mask.numpy())]}
    polygon = [[3.0, 2.0, 8.0, 2.0, 8.0, 5.0, 3.0, 5.0]]
    for segmentation in (compressed, plain, polygon):
        assert torch.equal(decode_mask(segmentation, 7, 9), mask)
    assert json.loads(json.dumps(compressed)) == compressed
    assert (pycocotools.mask.decode({**compressed, "counts": compressed["counts"].encode()}) == mask.numpy()).all()


def _runs(mask: Any) -> list[int]:
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))) if flat[0] == 0 else []
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def test_class_lists() -> None:
    assert len(coco.CLASSES) == len(coco.CATEGORY_IDS) == 80
    assert coco.CATEGORY_IDS[-1] == 90
    assert dict(zip(coco.CATEGORY_IDS, coco.CLASSES, strict=True))[13] == "stop sign"
    assert len(ade20k.CLASSES) == len(set(ade20k.CLASSES)) == 150


# Bad input


Change = Callable[[dict[str, Any]], None]


def changed(tmp_path: Path, change: Change) -> Split:
    folder = tmp_path / "val"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40)).save(folder / "a.jpg")
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]
    content: dict[str, Any] = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 50, "height": 40}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "segmentation": square}
        ],
        "categories": [{"id": 3, "name": "thing"}],
    }
    change(content)
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(content))
    return Split(path, folder)


def another(content: dict[str, Any], **values: Any) -> None:
    content["annotations"].append(dict(content["annotations"][0], id=2, **values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(dict(c["images"][0], id=8, file_name="b.jpg")), "1 of its 2 images are missing"),
        (lambda c: another(c, category_id=9), "annotation 2 has the unknown category 9"),
        (lambda c: another(c, image_id=9), "annotation 2 is of image 9, which is not in the file"),
        (lambda c: another(c, bbox=[1, 2]), r"annotation 2 has no box \[x, y, width, height\], but \[1, 2\]"),
        (lambda c: c.pop("categories"), "not COCO's format: no list of categories"),
        (lambda c: c["images"][0].pop("width"), "not COCO's format: one of its images has no width"),
        (lambda c: c["annotations"].clear(), "leaves no image to train on"),
    ],
)
def test_annotations_that_cannot_be_used(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as error:
        CocoInstances(changed(tmp_path, change), training=True)
    assert "instances_val.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"bbox": [5, 5, 0, 10]}, "1 empty boxes"),
        ({"bbox": [60, 5, 10, 10]}, "1 boxes outside the image"),
        ({"segmentation": []}, "1 instances without a mask"),
    ],
)
def test_boxes_that_teach_nothing_are_left_out_and_counted(tmp_path: Path, values: Any, note: str) -> None:
    split = changed(tmp_path, lambda c: another(c, **values))
    data = CocoInstances(split, training=True)
    assert data.notes == [f"instances_val.json: left out {note}"]
    assert len(data[0]["boxes"]) == 1
    with pytest.raises(AnnotationError, match=note):
        CocoInstances(split, training=True, strict=True)


def test_crowds_empty_images_and_boxes_across_the_border(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        another(content, iscrowd=1)
        another(content, bbox=[45, 30, 20, 20])
        content["images"].append(dict(content["images"][0], id=8))

    split = changed(tmp_path, change)
    data = CocoInstances(split, training=True)
    assert data.notes == ["instances_val.json: left out 1 images without annotations"]
    assert data[0]["boxes"].tolist() == [[5, 5, 15, 15], [45, 30, 50, 40]]
    assert len(CocoInstances(split, training=False)) == 2


def test_files_that_are_not_there_or_not_right(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no annotations/instances_train\*\.json; exactly one"):
        find_split(tmp_path, "train")
    split = changed(tmp_path, lambda c: c["images"][0].update(width=51))
    with pytest.raises(AnnotationError, match=r"a\.jpg: is 50×40 pixels, instances_val\.json says 51×40"):
        CocoInstances(split, training=True)[0]
    split.annotations.write_text("{")
    with pytest.raises(AnnotationError, match=r"instances_val\.json: cannot be read"):
        CocoInstances(split, training=True)


def scene(tmp_path: Path, labels: Any, mode: str | None = None) -> SceneParsing:
    for folder in ("images/validation", "annotations/validation"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("sky\nsea\n")
    Image.new("RGB", (6, 4)).save(tmp_path / "images/validation/a.png")
    picture = Image.fromarray(labels)
    (picture.convert(mode) if mode else picture).save(tmp_path / "annotations/validation/a.png")
    return SceneParsing(tmp_path, "val")


def test_zero_is_no_class(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2, 255, 1, 2]] * 4, np.uint8)
    assert scene(tmp_path, labels)[0]["labels"][0].tolist() == [255, 0, 1, 255, 0, 1]


@pytest.mark.parametrize(
    ("labels", "mode", "message"),
    [
        (np.full((4, 6), 3, np.uint8), None, "has the value 3, but there are 2 classes"),
        (np.ones((5, 6), np.uint8), None, "has 6×5 pixels, its image 6×4"),
        (np.ones((4, 6), np.uint8), "RGB", "one channel of 8 bits"),
    ],
)
def test_label_maps_that_cannot_be_used(tmp_path: Path, labels: Any, mode: str | None, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as error:
        scene(tmp_path, labels, mode)[0]
    assert "a.png" in str(error.value)


def test_scenes_without_folders_or_label_maps(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="no folder images/validation"):
        SceneParsing(tmp_path, "val")
    scene(tmp_path, np.ones((4, 6), np.uint8))
    (tmp_path / "annotations/validation/a.png").rename(tmp_path / "annotations/validation/b.png")
    with pytest.raises(AnnotationError, match=r"1 of 1 images have no label map, the first: a\.png"):
        SceneParsing(tmp_path, "val")


# Augmentation


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1067)), ((300, 1000), (400, 1333)), ((7, 5), (1120, 800))]
)
def test_sizes_are_those_of_the_published_preprocessing(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit(size, 800, 1333) == expected


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
    scenes = SceneParsing(shapes / "ade20k", "train", segmentation_training(96, 64, 256, (0.5, 2.0)))
    for i in range(6):
        with seeded(i):
            sample = scenes[i]
        assert sample["image"].shape == (3, 96, 96)
        assert sample["labels"].shape == (96, 96)
        padded = (sample["image"] == 0).all(dim=0)
        assert (sample["labels"][padded] == ade20k.IGNORED).all()


def test_crops_avoid_a_single_class(shapes: Path) -> None:
    sample = SceneParsing(shapes / "ade20k", "train")[3]
    sample["labels"][:, :32], sample["labels"][:, 32:] = 0, 1
    with seeded(0):
        crops = [CropVaried(24)(sample)["labels"] for _ in range(20)]
    varied = [crop for crop in crops if len(crop.unique()) > 1]
    assert len(varied) >= 15


def test_batches_hold_one_kind_of_shape() -> None:
    upright = [i % 3 == 0 for i in range(50)]
    loader = AspectGroupedLoader(
        range(50), list, upright=upright, batch_size=4, training=True, seed=1, rank=0, world_size=1
    )
    for epoch in (0, 1):
        assert sorted(loader.order(epoch)) == list(range(50))
        kinds = [{upright[i] for i in batch} for batch in loader.indices(epoch)]
        assert sum(len(kind) > 1 for kind in kinds) <= 1
    assert list(loader.order(0)) != list(loader.order(1))
