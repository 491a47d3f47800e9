"""Detection as a task: results of a detector that makes no error, and data that cannot be used together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from support.coco import Change, write_coco
from vmamba.errors import DataError
from vmamba.tasks.detection.mask_rcnn import Detections
from vmamba.tasks.detection.task import Detection, DetectionOptions
from vmamba.tasks.protocol import Job


class Perfect(nn.Module):
    """Finds the one box of every image, at whatever size it is given."""

    def forward(self, images: Tensor, sizes: tuple[tuple[int, int], ...]) -> list[Detections]:
        found = []
        for height, width in sizes:
            scale = torch.tensor([width / 50, height / 40] * 2) if width > height else torch.tensor([width / 40] * 4)
            boxes = torch.tensor([[5.0, 5.0, 15.0, 15.0]]) * scale
            found.append(Detections(boxes, torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1, 28, 28)))
        return found


def task(root: Path, change: Change = lambda content: None) -> Detection:
    for split in ("train", "val"):
        write_coco(root, change, split)
    job = Job(data=str(root), model="vmamba_pico", batch_size=2, workers=0)
    detection = Detection(job, DetectionOptions(image_size=32, max_size=64))
    detection.setup()
    return detection


def average_precisions(task: Detection) -> list[float]:
    loader = task.val_loader()
    results = task.evaluate(Perfect(), loader.batches(0))
    return [results["box_ap"], results["mask_ap"]]


def test_everything_is_found(tmp_path: Path) -> None:
    assert average_precisions(task(tmp_path)) == pytest.approx([100, 100])


def test_unreadable_images_do_not_count(tmp_path: Path) -> None:
    broken = task(tmp_path)
    (tmp_path / "val" / "7.png").write_bytes(b"no image")
    assert average_precisions(broken) == pytest.approx([100, 100])


@pytest.mark.parametrize("upright", [True, False])
def test_images_turned_by_exif(tmp_path: Path, upright: bool) -> None:
    """Annotated upright, as viewers show them, or as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6

    def change(content: dict[str, Any]) -> None:
        if upright:
            content["images"][0].update(width=40, height=50)

    turned = task(tmp_path, change)
    Image.new("RGB", (50, 40)).save(tmp_path / "val" / "7.png", exif=exif)
    assert average_precisions(turned) == pytest.approx([100, 100])


def test_splits_with_other_categories(tmp_path: Path) -> None:
    """Also where only the names differ."""
    different = task(tmp_path)
    path = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "other thing"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"differ in their categories, 3 \((other )?thing\) first"):
        different.setup()
