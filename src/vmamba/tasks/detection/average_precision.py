"""COCO's average precision of boxes and masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmamba.data.class_names import class_name
from vmamba.data.coco_file import CocoFile
from vmamba.data.masks import area, encode_mask
from vmamba.errors import MissingPackageError
from vmamba.files import atomic_write
from vmamba.tables import write_table

#: What COCO's evaluation calls its numbers, in its order.
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def as_results(
    image_id: int, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections of one image in COCO's results format.

    Args:
        image_id: Of the annotation file.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the original image.
        scores: (N,).
        labels: (N,), indices into `category_ids`.
        masks: Bool (N, H, W).
        category_ids: Of the annotation file.
    """
    sized = boxes.clone()
    sized[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(v, 3) for v in box],
            "score": score,
            "segmentation": encode_mask(mask),
        }
        for box, score, label, mask in zip(sized.tolist(), scores.tolist(), labels.tolist(), masks, strict=True)
    ]


def average_precision(
    truth: CocoFile, results: Sequence[Mapping[str, Any]], image_ids: Iterable[int], output: Path | None = None
) -> dict[str, float]:
    """Average precision, per cent, of detections against an annotation file.

    Args:
        truth: The file, crowds included.
        results: See `as_results`.
        image_ids: Of the images that were looked at; objects in others count neither as found nor as missed.
        output: Folder for ``detections.json`` and ``average_precision.csv`` (per class), or None.

    Returns:
        ``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_small`` …, and the same of masks; NaN where the file has no
        such objects.

    Raises:
        MissingPackageError: If faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise MissingPackageError("faster-coco-eval", "dense") from None
    ids = set(image_ids)
    names = [class_name(category.get("name", category["id"])) for category in truth.categories]
    numbers: dict[str, float] = {}
    per_class: dict[str, list[float]] = {}
    for kind, prefix, left_out in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
        if not ids:
            numbers |= {f"{prefix}_{name}": float("nan") for name in _NAMES}
            per_class[prefix] = [float("nan")] * len(names)
            continue
        # Masks are sorted by their own area, which the evaluator takes from the box where there is one.
        listed = results or [_nothing(min(ids), truth)]
        mine = [{key: value for key, value in result.items() if key != left_out} for result in listed]
        objects = COCO(_dataset(truth, ids, masks=kind == "segm"), print_function=_silent)
        evaluation = COCOeval_faster(objects, objects.loadRes(mine), kind, print_function=_silent)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = [float(v) for v in evaluation.stats[: len(_NAMES)]]
        numbers |= {f"{prefix}_{n}": 100 * v if v >= 0 else float("nan") for n, v in zip(_NAMES, stats, strict=True)}
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # overlap, recall, class
        of_class = [precision[:, :, i] for i in range(len(names))]
        per_class[prefix] = [100 * float(p[p > -1].mean()) if (p > -1).any() else float("nan") for p in of_class]
    if output is not None:
        with atomic_write(output / "detections.json") as file:
            file.write(json.dumps(list(results)).encode())
        values = zip(names, per_class["box"], per_class["mask"], strict=True)
        rows = [(name, *("" if np.isnan(v) else f"{v:.2f}" for v in pair)) for name, *pair in values]
        write_table(output / "average_precision.csv", ("class", "box_ap", "mask_ap"), rows)
    return numbers


def _nothing(image_id: int, truth: CocoFile) -> dict[str, Any]:
    """A detection that matches no object; the evaluator needs one."""
    size = next([image["height"], image["width"]] for image in truth.images if image["id"] == image_id)
    segmentation = encode_mask(torch.zeros(size, dtype=torch.uint8))
    category = truth.categories[0]["id"]
    values = {"image_id": image_id, "category_id": category, "bbox": [0.0] * 4, "score": 0.0}
    return {**values, "segmentation": segmentation}


def _dataset(truth: CocoFile, image_ids: set[int], *, masks: bool) -> dict[str, Any]:
    """The annotations of some images as the evaluator needs them.

    They are numbered from 1, since 0 stands for "not matched" there and ids of files may occur twice. Boxes that nobody
    can find, without area or outside their image, are left out. For masks, an object without one becomes a crowd that
    fills its box: found or not, it does not count.
    """
    images = [image for image in truth.images if image["id"] in image_ids]
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    annotations: list[dict[str, Any]] = []
    for entry in truth.annotations:
        if entry["image_id"] not in sizes:
            continue
        height, width = sizes[entry["image_id"]]
        x, y, w, h = entry["bbox"]
        if w <= 0 or h <= 0 or x >= width or y >= height or x + w <= 0 or y + h <= 0:
            continue
        mask: Any = entry.get("segmentation")
        if mask and not isinstance(mask, dict):
            mask = [polygon.tolist() for polygon in mask]
        if mask and not area(mask, height, width):
            mask = None  # a polygon that has no pixel
        crowd = bool(entry.get("iscrowd", 0)) or (masks and not mask)
        x1, y1, x2, y2 = x - 1, y - 1, x + w + 1, y + h + 1
        mask = mask or [[x1, y1, x2, y1, x2, y2, x1, y2]]
        size = entry.get("area")
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": [x, y, w, h],
                "area": area(mask, height, width) if size is None else size,
                "iscrowd": int(crowd),
                "segmentation": mask,
            }
        )
    return {"images": images, "annotations": annotations, "categories": truth.categories}


def _silent(*_: object, **__: object) -> None:
    """The evaluator would print."""
