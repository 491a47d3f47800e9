"""Instance annotations in COCO's format, read and checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from vmamba.data.images import read_image
from vmamba.data.summary import SplitSummary
from vmamba.errors import ImageError

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


class AnnotationError(ImageError):
    """Annotations that cannot be used; the message is one line that names the file."""


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
        AnnotationError: If there is no such file or folder, or more than one.
    """
    root = Path(root)
    found = sorted((root / "annotations").glob(f"instances_{name}*.json"))
    if len(found) != 1:
        what = "no" if not found else f"{len(found)} files"
        raise AnnotationError(f"{root}: {what} annotations/instances_{name}*.json; exactly one is needed")
    images = root / found[0].stem.removeprefix("instances_")
    if not images.is_dir():
        raise AnnotationError(f"{root}: {found[0].name} has no folder of images {images.name} beside annotations")
    return Split(found[0], images)


@dataclass(frozen=True)
class Picture:
    """An image of the annotation file, and the things in it that can be learnt.

    Attributes:
        id: Its id in the file.
        path: The image.
        height: In pixels.
        width: In pixels.
        boxes: (x1, y1, x2, y2) of each thing, inside the image.
        labels: Its class, an index.
        segmentations: As in the file: polygons or run lengths.
    """

    id: int
    path: Path
    height: int
    width: int
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[int, ...]
    segmentations: tuple[Any, ...]


class CocoInstances:
    """The images of an annotation file with their instances; ``samples[i]`` gives what `transform` makes of one.

    Crowds, boxes without area or wholly outside the image and instances without a mask are no examples to learn from
    and are left out here (evaluation reads the file itself, where crowds count as neither right nor wrong).

    Attributes:
        classes: Names, in the order of their ids.
        category_ids: Ids in the file, one per class.
        pictures: What is there.
        notes: What was left out, one line each, for a person.

    Args:
        split: See `find_split`.
        training: Leave out images without instances and those with a side below 32 pixels.
        transform: From a dictionary with tv_tensors: ``image``, its ``id``, ``file`` and ``size`` (height, width), and
            for training ``boxes``, ``labels``, ``masks``; None to return that.
        strict: Do not accept boxes without area or outside the image.

    Raises:
        AnnotationError: If the file cannot be read, refers to images or categories that do not exist, or leaves
            nothing; where `strict`, also for boxes that would be left out.
    """

    def __init__(
        self,
        split: Split,
        *,
        training: bool,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        strict: bool = False,
    ) -> None:
        self.split, self.transform, self.training = split, transform, training
        content = read_annotations(split.annotations)
        categories = sorted(content["categories"], key=lambda c: c["id"])
        self.category_ids = tuple(c["id"] for c in categories)
        self.classes = tuple(str(c.get("name", c["id"])) for c in categories)
        self._label = {category: i for i, category in enumerate(self.category_ids)}
        self._left_out: Counter[str] = Counter()
        instances = self._by_image(content)
        self._check_files(content["images"])
        pictures = [self._picture(image, instances.get(image["id"], ())) for image in content["images"]]
        if strict and self._left_out:
            raise AnnotationError(f"{split.annotations}: {self._faults()}; without --strict they are left out")
        if training:
            kept = [p for p in pictures if p.boxes and min(p.height, p.width) >= 32]
            self._left_out["images without annotations"] = len(pictures) - len(kept)
            pictures = kept
        self.pictures = pictures
        self.notes = [f"{split.annotations.name}: left out {self._faults()}"] if +self._left_out else []
        if not pictures:
            raise AnnotationError(f"{split.annotations}: leaves no image to {'train' if training else 'evaluate'} on")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        picture = self.pictures[index]
        image = read_image(picture.path)
        if image.size != (picture.width, picture.height):
            raise AnnotationError(
                f"{picture.path}: is {image.width}×{image.height} pixels, {self.split.annotations.name} says "
                f"{picture.width}×{picture.height}"
            )
        size = (picture.height, picture.width)
        sample = {"image": tv_tensors.Image(image), "id": picture.id, "file": picture.path.name, "size": size}
        if self.training:
            boxes = torch.tensor(picture.boxes, dtype=torch.float32).view(-1, 4)
            sample["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
            sample["labels"] = torch.tensor(picture.labels, dtype=torch.int64)
            sample["masks"] = tv_tensors.Mask(torch.stack([decode_mask(s, *size) for s in picture.segmentations]))
        return sample if self.transform is None else self.transform(sample)

    def summary(self, split: str) -> SplitSummary:
        """Instances of each class."""
        numbers = Counter(label for picture in self.pictures for label in picture.labels)
        counts = {name: numbers[i] for i, name in enumerate(self.classes)}
        left_out = dict(self._left_out)
        return SplitSummary(split, str(self.split.annotations), len(self.pictures), counts, "instances", left_out)

    def _by_image(self, content: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
        name = self.split.annotations
        known = {image["id"] for image in content["images"]}
        grouped: dict[int, list[dict[str, Any]]] = {}
        for annotation in content["annotations"]:
            where = f"{name}: annotation {annotation.get('id', '?')}"
            if annotation.get("image_id") not in known:
                raise AnnotationError(f"{where} is of image {annotation.get('image_id')}, which is not in the file")
            if annotation.get("category_id") not in self._label:
                raise AnnotationError(
                    f"{where} has the unknown category {annotation.get('category_id')}; "
                    f"the file has {len(self.category_ids)}: {', '.join(map(str, self.category_ids[:5]))} …"
                )
            box = annotation.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
                raise AnnotationError(f"{where} has no box [x, y, width, height], but {box!r}")
            grouped.setdefault(annotation["image_id"], []).append(annotation)
        return grouped

    def _check_files(self, images: Sequence[Mapping[str, Any]]) -> None:
        there = {p.relative_to(self.split.images).as_posix() for p in self.split.images.rglob("*")}
        missing = [image["file_name"] for image in images if image["file_name"] not in there]
        if missing:
            raise AnnotationError(
                f"{self.split.annotations}: {len(missing)} of its {len(images)} images are missing in "
                f"{self.split.images}, the first: {missing[0]}"
            )

    def _picture(self, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> Picture:
        height, width = image["height"], image["width"]
        boxes, labels, segmentations = [], [], []
        for annotation in annotations:
            if annotation.get("iscrowd"):
                continue
            x, y, w, h = annotation["bbox"]
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if w < 1 or h < 1 or annotation.get("area", 1) <= 0:
                self._left_out["empty boxes"] += 1
            elif right <= left or bottom <= top:
                self._left_out["boxes outside the image"] += 1
            elif not annotation.get("segmentation"):
                self._left_out["instances without a mask"] += 1
            else:
                boxes.append((left, top, right, bottom))
                labels.append(self._label[annotation["category_id"]])
                segmentations.append(annotation["segmentation"])
        path = self.split.images / image["file_name"]
        return Picture(image["id"], path, height, width, tuple(boxes), tuple(labels), tuple(segmentations))

    def _faults(self) -> str:
        return ", ".join(f"{number} {what}" for what, number in (+self._left_out).items())


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of an annotation file, its outline checked.

    Raises:
        AnnotationError: If it cannot be read or is not COCO's format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnnotationError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: not COCO's format, which is an object with images, annotations, categories")
    for part, fields in (
        ("images", ("id", "file_name", "height", "width")),
        ("annotations", ()),
        ("categories", ("id",)),
    ):
        entries = content.get(part)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise AnnotationError(f"{path}: not COCO's format: no list of {part}")
        for entry in entries:
            lacking = [field for field in fields if field not in entry]
            if lacking:
                raise AnnotationError(f"{path}: not COCO's format: one of its {part} has no {lacking[0]}")
    return content


def decode_mask(segmentation: Any, height: int, width: int) -> Tensor:
    """Polygons, or run lengths plain or compressed → uint8 (height, width) of zeros and ones."""
    code = _codec()
    if isinstance(segmentation, list):
        runs = code.merge(code.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = code.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return torch.from_numpy(np.ascontiguousarray(code.decode(runs)).reshape(height, width))


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """Bool or uint8 (height, width) → compressed run lengths, fit for JSON."""
    runs = _codec().encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    counts = runs["counts"]
    return {"size": list(runs["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _codec() -> Any:
    """Run lengths in C, with the functions of ``pycocotools.mask``."""
    try:
        from faster_coco_eval import mask
    except ImportError:
        raise ValueError("masks in COCO's format need faster-coco-eval: pip install 'vmamba[dense]'") from None
    return mask
