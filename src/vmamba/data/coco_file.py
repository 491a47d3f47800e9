"""An annotation file in COCO's format: its schema, and the checks that no schema can express."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import NotRequired, TypedDict

from vmamba.data.annotations import MAX_FAULTS, AnnotationError, Faults, shown
from vmamba.data.images import pixel_limit
from vmamba.data.masks import polygon_fault, run_length_fault


def _whole(value: object) -> object:
    """Some exporters write 640.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = Annotated[int, BeforeValidator(_whole), Strict()]
_Id = Annotated[_Whole, Field(ge=0, le=2**53)]
_Length = Annotated[_Whole, Field(ge=1, le=2**20)]
_Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
_Positive = Annotated[_Number, Field(ge=0)]


class ImageEntry(TypedDict):
    """One of ``images``."""

    id: _Id
    file_name: Annotated[str, Field(min_length=1)]
    height: _Length
    width: _Length


class RunLengths(TypedDict):
    """A mask as run lengths, plain or compressed."""

    size: tuple[_Length, _Length]
    counts: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Annotated[_Whole, Field(ge=0)]], Tag("list")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "list"),
    ]


_Segmentation = Annotated[
    Annotated[list[list[_Number]], Tag("polygons")] | Annotated[RunLengths, Tag("runs")] | Annotated[None, Tag("none")],
    Discriminator(lambda value: "runs" if isinstance(value, dict) else "none" if value is None else "polygons"),
]


class AnnotationEntry(TypedDict):
    """One of ``annotations``; `id` is told in messages, evaluation numbers them itself."""

    image_id: _Id
    category_id: _Id
    bbox: tuple[_Number, _Number, _Positive, _Positive]
    id: NotRequired[Any]
    area: NotRequired[_Number | None]
    iscrowd: NotRequired[Literal[0, 1, False, True]]
    segmentation: NotRequired[_Segmentation]


class CategoryEntry(TypedDict):
    """One of ``categories``."""

    id: _Id
    name: NotRequired[str]


class _Content(TypedDict):
    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: Annotated[list[CategoryEntry], Field(min_length=1)]


_SCHEMA = TypeAdapter(_Content)
# Names of alternatives in the places that pydantic tells.
_TAGS = {"polygons", "runs", "none", "text", "list"}


@dataclass(frozen=True)
class CocoFile:
    """The checked content of an annotation file.

    Attributes:
        path: The file.
        images: As in the file.
        annotations: As in the file; polygons are float64 arrays, masks without any point are missing.
        categories: In the order of their ids.
    """

    path: Path
    images: list[ImageEntry]
    annotations: list[AnnotationEntry]
    categories: list[CategoryEntry]


def read_coco(path: Path) -> CocoFile:
    """Read an annotation file and check all of it.

    Raises:
        AnnotationError: If it cannot be read, or is not COCO's format; each fault with its place, value, and what was
            expected there.
    """
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise AnnotationError(path, [f"cannot be read: {error.strerror or error}"]) from None
    try:
        content = _SCHEMA.validate_json(text)
    except ValidationError as error:
        details = error.errors(include_url=False)[:MAX_FAULTS]
        raise AnnotationError(path, list(map(_described, details)), error.error_count()) from None
    faults = Faults(path)
    _check_images(content["images"], faults)
    _check_unique("categories", content["categories"], faults)
    _check_annotations(content, faults)
    faults.check()
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    return CocoFile(path, content["images"], content["annotations"], categories)


def _described(error: ErrorDetails) -> str:
    place = ""
    for part in error["loc"]:
        if part not in _TAGS:
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "json_invalid":
        return f"is not JSON: {error['ctx']['error']}"
    if not place:
        return "is not COCO's format, an object with the lists images, annotations and categories"
    expected = error["msg"].removeprefix("Input should be ")
    joint = ", not " if expected != error["msg"] else ": "
    return f"{place} is {shown(error['input'])}{joint}{expected[0].lower()}{expected[1:]}"


def _check_unique(part: str, entries: Any, faults: Faults) -> None:
    for identity, count in Counter(entry["id"] for entry in entries).items():
        if count > 1:
            faults.add(f"{count} of {part} have the id {identity}")


def _check_images(images: list[ImageEntry], faults: Faults) -> None:
    _check_unique("images", images, faults)
    limit = pixel_limit()
    for i, image in enumerate(images):
        if image["height"] * image["width"] > limit:
            faults.add(f"images[{i}] has {image['width']}×{image['height']} pixels, the limit is {limit:,} together")
        name = PurePosixPath(image["file_name"])
        if name.is_absolute() or ".." in name.parts or "\0" in image["file_name"]:
            faults.add(f"images[{i}].file_name is {shown(image['file_name'])}, not a name below the folder of images")


def _check_annotations(content: _Content, faults: Faults) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for i, entry in enumerate(content["annotations"]):
        if entry["image_id"] not in sizes:
            faults.add(f"{_place(i, entry)}.image_id is {entry['image_id']}, which none of the images has")
            continue
        if entry["category_id"] not in categories:
            some = ", ".join(map(str, sorted(categories)[:5])) + (" …" if len(categories) > 5 else "")
            faults.add(f"{_place(i, entry)}.category_id is {entry['category_id']}, not one of {some}")
        fault = _check_segmentation(entry, *sizes[entry["image_id"]])
        if fault:
            faults.add(f"{_place(i, entry)}.segmentation{fault}")


def _check_segmentation(entry: AnnotationEntry, height: int, width: int) -> str | None:
    """What is wrong with a mask; its polygons become arrays, which take a tenth of the memory."""
    segmentation: Any = entry.get("segmentation")
    if isinstance(segmentation, dict):
        fault = run_length_fault(segmentation["size"], segmentation["counts"], height, width)
        return f" {fault}" if fault else None
    polygons = [np.array(polygon) for polygon in segmentation or () if polygon]
    entry["segmentation"] = polygons  # type: ignore[typeddict-item]
    for k, polygon in enumerate(polygons):
        fault = polygon_fault(polygon, height, width)
        if fault:
            return f"[{k}] {fault}"
    return None


def _place(i: int, entry: AnnotationEntry) -> str:
    return f"annotations[{i}]" + (f" (id {shown(entry['id'])})" if "id" in entry else "")
