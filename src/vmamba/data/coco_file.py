"""An annotation file in COCO's format: its schema, and the checks that no schema can express."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json
from typing_extensions import NotRequired, TypedDict

from vmamba.data.annotations import AnnotationError, Faults, shown
from vmamba.data.images import pixel_limit
from vmamba.data.masks import far_outside, polygon_fault, run_length_fault
from vmamba.errors import system_reason
from vmamba.files import require_file

T = TypeVar("T")


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
    """One of ``annotations``; `id` only helps messages, evaluation numbers them itself."""

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


_IMAGES = TypeAdapter(list[ImageEntry])
_ANNOTATIONS = TypeAdapter(list[AnnotationEntry])
_CATEGORIES = TypeAdapter(Annotated[list[CategoryEntry], Field(min_length=1)])
# Names of alternatives in the places that pydantic reports.
_TAGS = {"polygons", "runs", "none", "text", "list"}
# Types of pydantic's errors → what JSON calls that which was expected.
_EXPECTED = {
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "text",
    "tuple_type": "a list",
}
# Annotations that are checked at a time: their polygons become arrays before those of the next do.
_CHUNK = 1024


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


def read_coco(path: Path, max_pixels: int | None = None) -> CocoFile:
    """Read an annotation file and check all of it, its images of at most `max_pixels` (by default Pillow's limit).

    Raises:
        AnnotationError: If it cannot be read, or is not COCO's format; each fault with its place, value, and what was
            expected there.
    """
    try:
        require_file(path)
        content = from_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise AnnotationError(path, [f"cannot be read: {system_reason(error)}"]) from None
    except ValueError as error:
        raise AnnotationError(path, [f"is not JSON: {error}"]) from None
    if not isinstance(content, dict):
        raise AnnotationError(path, ["is not COCO's format, an object with the lists images, annotations, categories"])
    faults = Faults(path)
    images = _validated("images", _IMAGES, content, faults)
    categories = _validated("categories", _CATEGORIES, content, faults)
    annotations = _list_in("annotations", content, faults)
    for start in range(0, len(annotations), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        annotations[chunk] = _validate("annotations", _ANNOTATIONS, annotations[chunk], faults, start)
    faults.check()
    _check_images(images, pixel_limit() if max_pixels is None else max_pixels, faults)
    _check_unique("categories", categories, faults)
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    ids = {category["id"] for category in categories}
    for i, entry in enumerate(annotations):
        _check_annotation(f"annotations[{i}]", entry, sizes, ids, faults)
    faults.check()
    return CocoFile(path, images, annotations, sorted(categories, key=lambda entry: entry["id"]))


def _list_in(part: str, content: dict[str, Any], faults: Faults) -> list[Any]:
    value = content.get(part)
    if isinstance(value, list):
        return value
    faults.add(f"{part} is {shown(value)}, not a list" if part in content else f"{part} is missing")
    return []


def _validated(part: str, schema: TypeAdapter[list[T]], content: dict[str, Any], faults: Faults) -> list[T]:
    entries = _list_in(part, content, faults)
    return _validate(part, schema, entries, faults) if part in content else []


def _validate(part: str, schema: TypeAdapter[list[T]], entries: list[Any], faults: Faults, first: int = 0) -> list[T]:
    """Entries of a list as the schema has them, polygons as arrays, which take a tenth of the memory."""
    try:
        valid = schema.validate_python(entries)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            faults.add(_described(part, details, first))
        return []
    for entry in valid if part == "annotations" else ():
        values: Any = entry
        if isinstance(values.get("segmentation"), list):
            values["segmentation"] = [np.array(polygon) for polygon in values["segmentation"] if polygon]
    return valid


def _described(part: str, error: ErrorDetails, first: int) -> str:
    place, number = part, first
    for step in error["loc"]:
        if isinstance(step, int):
            place, number = f"{place}[{number + step}]", 0
        elif step not in _TAGS:
            place += f".{step}"
    if error["type"] == "missing":
        return f"{place} is missing"
    expected = _EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be "))
    joint = ": " if expected == error["msg"] else ", not "
    return f"{place} is {shown(error['input'])}{joint}{expected[0].lower()}{expected[1:]}"


def _check_unique(part: str, entries: Any, faults: Faults) -> None:
    for identity, count in Counter(entry["id"] for entry in entries).items():
        if count > 1:
            faults.add(f"{count} of {part} have the id {identity}")


def _check_images(images: list[ImageEntry], limit: int, faults: Faults) -> None:
    _check_unique("images", images, faults)
    for i, image in enumerate(images):
        if image["height"] * image["width"] > limit:
            size = f"{image['width']}×{image['height']}"
            faults.add(f"images[{i}] has {size} pixels, the limit is {limit:,} together (--set max_pixels=N)")
        name = PurePosixPath(image["file_name"])
        if name.is_absolute() or ".." in name.parts or "\0" in image["file_name"]:
            faults.add(f"images[{i}].file_name is {shown(image['file_name'])}, not a name below the folder of images")


def _check_annotation(
    place: str, entry: AnnotationEntry, sizes: dict[int, tuple[int, int]], categories: set[int], faults: Faults
) -> None:
    place += f" (id {shown(entry['id'])})" if "id" in entry else ""
    if entry["category_id"] not in categories:
        some = ", ".join(map(str, sorted(categories)[:5])) + (" …" if len(categories) > 5 else "")
        faults.add(f"{place}.category_id is {entry['category_id']}, not one of {some}")
    if entry["image_id"] not in sizes:
        faults.add(f"{place}.image_id is {entry['image_id']}, which none of the images has")
        return
    height, width = sizes[entry["image_id"]]
    x, y, w, h = entry["bbox"]
    fault = far_outside(x, y, x + w, y + h, height, width)
    if fault:
        faults.add(f"{place}.bbox {fault}")
    segmentation: Any = entry.get("segmentation")
    if isinstance(segmentation, dict):
        fault = run_length_fault(segmentation["size"], segmentation["counts"], height, width)
        if fault:
            faults.add(f"{place}.segmentation {fault}")
        return
    for k, polygon in enumerate(segmentation or ()):
        fault = polygon_fault(polygon, height, width)
        if fault:
            faults.add(f"{place}.segmentation[{k}] {fault}")
