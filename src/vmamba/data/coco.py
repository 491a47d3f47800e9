"""Images with instance annotations in COCO's format."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from vmamba.data.annotations import AnnotationError, shown
from vmamba.data.class_names import class_name
from vmamba.data.coco_file import AnnotationEntry, ImageEntry, read_coco
from vmamba.data.images import read_image_of_size
from vmamba.data.masks import decode_mask, is_empty
from vmamba.data.summary import SplitSummary
from vmamba.data.verify import unreadable
from vmamba.errors import DataError

#: COCO's 80 classes, in the order of their ids.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

#: COCO's category ids have gaps; other files number theirs as they like.
_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _GAPS)

_MASKLESS = "instances without a mask"


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        annotations: The JSON file.
        images: Folder of the images.
    """

    annotations: Path
    images: Path


def find_split(root: str | Path, name: str) -> Split:
    """``annotations/instances_NAME*.json`` and the folder of images that it is named after.

    Args:
        root: Folder with ``annotations/``, as COCO unpacks.
        name: ``"train"`` or ``"val"``: finds ``instances_train2017.json`` and ``train2017/``.

    Raises:
        DataError: If there is no such file or folder, or more than one.
    """
    root = Path(root)
    files = sorted((root / "annotations").glob(f"instances_{name}*.json"))
    if len(files) != 1:
        number = f"{len(files)} files" if files else "no"
        raise DataError(f"{root}: {number} annotations/instances_{name}*.json; exactly one is needed")
    images = root / files[0].stem.removeprefix("instances_")
    if not images.is_dir():
        raise DataError(f"{root}: {files[0].name} has no folder of images {images.name} beside annotations")
    return Split(files[0], images)


@dataclass(frozen=True)
class Picture:
    """An image of the annotation file, and the things in it that can be learnt.

    Attributes:
        id: Its id in the file.
        path: The image.
        height: In pixels.
        width: In pixels.
        boxes: float32 (N, 4), x1, y1, x2, y2 of each thing, inside the image.
        labels: int64 (N,), its class.
        segmentations: Polygons (float64 arrays) or run lengths of each.
    """

    id: int
    path: Path
    height: int
    width: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    segmentations: tuple[Any, ...]


class CocoInstances:
    """The images of an annotation file with their instances; ``samples[i]`` gives what `transform` makes of one.

    Crowds, boxes without area or wholly outside the image and instances whose mask is missing or has no pixel are no
    examples to learn from and are left out here (evaluation takes the file itself, where crowds count as neither right
    nor wrong).

    Attributes:
        file: The checked file; for training without its annotations, which are in `pictures`.
        classes: Names, in the order of their ids.
        category_ids: Ids in the file, one per class.
        pictures: The images that are used.
        left_out: Reason → number of instances and images that are not.

    Args:
        split: See `find_split`.
        training: Leave out images without instances and those with a side below 32 pixels.
        transform: From a dictionary with tv_tensors: ``image``, its ``id``, ``file`` and ``size`` (height, width), and
            for training ``boxes``, ``labels``, ``masks``; None to return that.
        strict: Do not accept boxes without area or outside the image, nor instances without a mask or a pixel in it.
        max_pixels: See `vmamba.data.images.read_image`.

    Raises:
        AnnotationError: If the file cannot be read, refers to images or categories that do not exist, or leaves
            nothing; where `strict`, also for instances that would be left out.
    """

    def __init__(
        self,
        split: Split,
        *,
        training: bool,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        strict: bool = False,
        max_pixels: int | None = None,
    ) -> None:
        self.split, self.transform, self.training, self.max_pixels = split, transform, training, max_pixels
        file = read_coco(split.annotations, max_pixels)
        self.file = replace(file, annotations=[]) if training else file
        self.category_ids = tuple(category["id"] for category in file.categories)
        self.classes = tuple(class_name(category.get("name", category["id"])) for category in file.categories)
        self._label = {category: i for i, category in enumerate(self.category_ids)}
        self.left_out: Counter[str] = Counter()
        self._check_files()
        by_image: dict[int, list[AnnotationEntry]] = {}
        for annotation in file.annotations:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        pictures = [self._picture(image, by_image.get(image["id"], ())) for image in self.file.images]
        if strict and self.left_out:
            faults = [
                f"has {count:,} {reason}; without --strict they are left out" for reason, count in self._reasons()
            ]
            raise AnnotationError(split.annotations, faults)
        self.pictures = [picture for picture in pictures if self._is_used(picture)]
        if not self.pictures:
            purpose = "train" if training else "evaluate"
            reasons = "".join(f", {count:,} {reason}" for reason, count in self._reasons())
            masks = (
                "; Mask R-CNN learns from masks (segmentation), boxes alone are not enough"
                if self.left_out[_MASKLESS]
                else ""
            )
            raise AnnotationError(split.annotations, [f"leaves no image to {purpose} on{reasons}{masks}"])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        picture = self.pictures[index]
        image = self._read(index)
        size = (picture.height, picture.width)
        sample = {"image": tv_tensors.Image(image), "id": picture.id, "file": picture.path.name, "size": size}
        if self.training:
            boxes = torch.tensor(picture.boxes)
            sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
            sample["labels"] = torch.tensor(picture.labels)
            sample["masks"] = tv_tensors.Mask(torch.stack([decode_mask(s, *size) for s in picture.segmentations]))
        return sample if self.transform is None else self.transform(sample)

    def summary(self, split: str, *, verify: bool = False) -> SplitSummary:
        """Instances of each class.

        Args:
            split: Name of the split.
            verify: Read every image, too.
        """
        numbers = np.zeros(len(self.classes), np.int64)
        for picture in self.pictures:
            numbers += np.bincount(picture.labels, minlength=len(numbers))
        counts: Counter[str] = Counter()
        for name, count in zip(self.classes, numbers.tolist(), strict=True):
            counts[name] += count
        twice = [name for name, count in Counter(self.classes).items() if count > 1]
        broken = unreadable(len(self), self._read) if verify else []
        return SplitSummary(
            split,
            str(self.split.annotations),
            len(self),
            dict(counts),
            "instances",
            dict(self.left_out),
            [f"several categories have the name {name!r}" for name in twice],
            broken,
        )

    def _read(self, index: int) -> Image.Image:
        picture = self.pictures[index]
        return read_image_of_size(picture.path, picture.width, picture.height, max_pixels=self.max_pixels)

    def _check_files(self) -> None:
        """Look whether all images are there, one listing per folder."""
        names = [image["file_name"] for image in self.file.images]
        present: set[str] = set()
        for folder in {os.path.dirname(name) for name in names}:
            place = self.split.images / folder
            if place.is_dir():
                present.update(os.path.join(folder, entry.name) for entry in os.scandir(place))
        missing = [name for name in names if os.path.join(os.path.dirname(name), os.path.basename(name)) not in present]
        if missing:
            number = f"{len(missing):,} of its {len(names):,} images are missing"
            raise AnnotationError(
                self.split.annotations, [f"{number} in {self.split.images}, {shown(missing[0])} first"]
            )

    def _picture(self, image: ImageEntry, annotations: Sequence[AnnotationEntry]) -> Picture:
        height, width = image["height"], image["width"]
        boxes, labels, segmentations = [], [], []
        for annotation in annotations:
            if annotation.get("iscrowd"):
                continue
            x, y, w, h = annotation["bbox"]
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            area = annotation.get("area")
            if w < 1 or h < 1 or (area is not None and area <= 0):
                self.left_out["boxes without area"] += 1
            elif right <= left or bottom <= top:
                self.left_out["boxes outside their image"] += 1
            elif not (segmentation := annotation.get("segmentation")):
                self.left_out[_MASKLESS] += 1
            elif is_empty(segmentation, height, width):
                self.left_out["instances whose mask has no pixel"] += 1
            else:
                boxes.append((left, top, right, bottom))
                labels.append(self._label[annotation["category_id"]])
                segmentations.append(segmentation)
        return Picture(
            image["id"],
            self.split.images / image["file_name"],
            height,
            width,
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            tuple(segmentations),
        )

    def _is_used(self, picture: Picture) -> bool:
        if not self.training:
            return True
        if not len(picture.labels):
            self.left_out["images without instances to learn from"] += 1
            return False
        if min(picture.height, picture.width) < 32:
            self.left_out["images with a side below 32 pixels"] += 1
            return False
        return True

    def _reasons(self) -> list[tuple[str, int]]:
        return list((+self.left_out).items())
