"""The shards of a WebDataset: which there are, and how many samples they hold."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from vmamba.data.annotations import shown
from vmamba.data.image_tree import UNLABELLED
from vmamba.data.images import image_endings
from vmamba.data.tar import StrictTarInfo
from vmamba.errors import DataError, MissingPackageError, system_reason
from vmamba.files import require_file


@dataclass(frozen=True)
class Shards:
    """The shards of one split.

    Attributes:
        urls: Files, or addresses that webdataset can open.
        samples: Samples in all of them.
        counts: Class → samples; empty where an information file says how many samples there are.
    """

    urls: tuple[str, ...]
    samples: int
    counts: Mapping[int, int] = field(default_factory=dict)


def find_shards(root: str, split: str, *, labelled: bool = True) -> Shards:
    """The shards of a split.

    Args:
        root: Folder or address. Its ``_info.json``, where there is one, names the splits' files and lengths, as timm
            writes it: ``{"splits": {"train": {"filenames": […], "shard_lengths": […]}}}``; an address needs one.
            Else the shards are ``root/split/*.tar`` or ``root/*split*.tar`` and their samples are counted.
        split: ``"train"``, ``"val"`` …
        labelled: Count the samples with a ``.cls``; otherwise the images, whose classes are not looked at.

    Raises:
        MissingPackageError: If webdataset is not installed.
        DataError: If there are no such shards, one that was counted is damaged, or `_info.json` cannot be understood.
    """
    try:
        import webdataset
    except ImportError:
        raise MissingPackageError("webdataset", "train") from None
    root = root.rstrip("/")
    if "://" in root or (Path(root) / "_info.json").is_file():
        address = f"{root}/_info.json"
        try:
            if "://" not in root:
                require_file(address)
            with webdataset.gopen(address) as file:
                content = json.load(file)
        except Exception as error:  # openers of addresses raise nearly anything
            raise DataError(f"{address}: cannot be read: {reason_of(error)}") from None
        info = _information(address, content, split)
        return Shards(tuple(f"{root}/{name}" for name in info["filenames"]), sum(info["shard_lengths"]))
    paths = sorted((Path(root) / split).glob("*.tar")) or sorted(Path(root).glob(f"*{split}*.tar"))
    if not paths:
        raise DataError(f"{root}: no shards {split}/*.tar or *{split}*.tar")
    counts = sum((_count(path, labelled) for path in paths), Counter[int]())
    return Shards(tuple(map(str, paths)), counts.total(), counts if labelled else {})


class _Split(TypedDict):
    """A split in an information file."""

    filenames: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    shard_lengths: list[Annotated[int, Strict(), Field(ge=0, le=2**53)]]


_SPLIT = TypeAdapter(_Split)


def _information(address: str, content: Any, split: str) -> _Split:
    """A split in an information file.

    Raises:
        DataError: If that is not the names and lengths of its shards.
    """
    wanted = f"it must list filenames and shard_lengths of {split!r}"
    try:
        listed = content["splits"][split]
    except (KeyError, TypeError, IndexError):
        raise DataError(f"{address}: has no splits.{split}; {wanted}") from None
    try:
        info = _SPLIT.validate_python(listed)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("splits", split, *details["loc"])))
        problem = "is missing" if details["type"] == "missing" else f"is {shown(details['input'])}"
        raise DataError(f"{address}: {place} {problem}; {wanted}") from None
    if len(info["filenames"]) != len(info["shard_lengths"]):
        counts = f"{len(info['filenames'])} filenames and {len(info['shard_lengths'])} shard_lengths"
        raise DataError(f"{address}: splits.{split} has {counts}; one length a file is needed")
    return info


def _count(path: Path, labelled: bool) -> Counter[int]:
    """Samples of each class in a shard; -1 stands for what is no class number, and for all unless `labelled`."""
    counts: Counter[int] = Counter()
    endings = image_endings()
    try:
        require_file(path)
        with tarfile.open(path, tarinfo=StrictTarInfo) as archive:
            for member in archive:
                if not member.isreg():
                    continue
                if not labelled:
                    counts[UNLABELLED] += Path(member.name).suffix.lower() in endings
                elif member.name.endswith(".cls"):
                    content = archive.extractfile(member)
                    text = content.read(20).strip() if content else b""
                    counts[int(text) if text.isdigit() else -1] += 1
    except Exception as error:  # tarfile raises nearly anything on a broken file
        raise DataError(f"{path}: cannot read the shard: {reason_of(error)}") from None
    return counts


def reason_of(error: Exception) -> str:
    """The reason of an error of tarfile or of an opener of addresses, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return system_reason(error)
    return " ".join(str(error).split()) or type(error).__name__
