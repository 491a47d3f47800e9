"""A small data set in COCO's format, to be changed, and the detections of a detector that makes no error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vmamba.data.coco import Split
from vmamba.data.coco_file import CocoFile
from vmamba.data.masks import decode_mask
from vmamba.tasks.detection.average_precision import as_results

Change = Callable[[dict[str, Any]], None]


def content() -> dict[str, Any]:
    """Two images of 50×40 pixels with an object each."""
    square = [[5, 5, 15, 5, 15, 15, 5, 15]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 50, "height": 40} for i in (7, 8)],
        "annotations": [
            {"id": i - 6, "image_id": i, "category_id": 3, "bbox": [5, 5, 10, 10], "area": 100, "segmentation": square}
            for i in (7, 8)
        ],
        "categories": [{"id": 3, "name": "thing"}],
    }


def write_coco(folder: Path, change: Change = lambda content: None, split: str = "val") -> Split:
    """`content`, changed, with its images."""
    values = content()
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for image in values["images"]:
        Image.new("RGB", (50, 40)).save(folder / split / image["file_name"])
    change(values)
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(values))
    return Split(path, folder / split)


def perfect_detections(file: CocoFile, image_ids: set[int]) -> list[dict[str, Any]]:
    """Every object of some images with its box and mask (where that has no pixel, all of its box)."""
    results = []
    ids = [category["id"] for category in file.categories]
    for image in file.images:
        size = image["height"], image["width"]
        for entry in file.annotations:
            if entry["image_id"] != image["id"] or image["id"] not in image_ids or entry.get("iscrowd"):
                continue
            x, y, w, h = entry["bbox"]
            if min(w, h, x + w, y + h) <= 0 or x >= size[1] or y >= size[0]:  # nothing to be seen
                continue
            mask = decode_mask(entry["segmentation"], *size).bool() if entry.get("segmentation") else torch.zeros(size)
            if not mask.any():
                mask = torch.zeros(size, dtype=torch.bool)
                mask[int(max(y, 0)) : int(y + h) + 1, int(max(x, 0)) : int(x + w) + 1] = True
            box, label = torch.tensor([[x, y, x + w, y + h]]), torch.tensor([ids.index(entry["category_id"])])
            results += as_results(image["id"], box, torch.tensor([0.9]), label, mask[None], ids)
    return results
