"""Images with a class: folders, tar files and Hugging Face data sets through timm's readers."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from timm.data.readers import create_reader
from torch import Tensor

from vmamba.data.images import read_image
from vmamba.errors import ImageError

#: Names under which the splits of a folder are looked for, `SPLIT` or `SPLIT.tar`.
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test")}


class Sample(NamedTuple):
    """One image with its class and the name of its file."""

    pixels: Tensor
    label: int
    name: str


class ClassifiedImages:
    """A data set with random access; ``images[i]`` is a `Sample`.

    Args:
        reader: One of timm's: ``reader[i]`` is an open file and a class.
        transform: PIL image (RGB) → pixels.
        chosen: Which of the reader's images, all by default.
    """

    def __init__(
        self, reader: Any, transform: Callable[[Image.Image], Tensor], chosen: Sequence[int] | None = None
    ) -> None:
        self.reader, self.transform = reader, transform
        self.chosen: Sequence[int] = range(len(reader)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        picture, label, name = self.picture(index)
        return Sample(self.transform(picture), label, name)

    def picture(self, index: int) -> tuple[Image.Image, int, str]:
        """The image as it is in the file, its class and its name.

        Raises:
            ImageError: If it cannot be read.
        """
        i = self.chosen[index]
        name = str(self.reader.filename(i, absolute=True) or f"number {i}")
        try:
            content, label = self.reader[i]
        except OSError as error:
            raise ImageError(f"cannot read the image {name}: {(error.strerror or str(error)).lower()}") from None
        with content:
            return read_image(name, content), int(label), name


def find_split(root: str, split: str) -> str | None:
    """Where a split of a folder lies, or None: a folder, or a tar file of class folders.

    Args:
        root: The folder of the data.
        split: ``"train"`` or ``"val"``; some synonyms are tried.

    Raises:
        ValueError: If there is no such folder.
    """
    if not os.path.isdir(root):
        raise ValueError(f"{root}: no such folder; --data names the folder that holds train/ and val/")
    candidates = [os.path.join(root, name + ending) for name in SPLITS[split] for ending in ("", ".tar")]
    return next((path for path in candidates if os.path.exists(path)), None)


def open_folder(path: str, classes: Mapping[str, int] | None = None) -> Any:
    """timm's reader of a folder of class folders, or of a tar file of them.

    Args:
        path: The folder or tar file.
        classes: Class name → number; numbered here in natural order where not given.

    Raises:
        ValueError: For a class folder without images, a class that `classes` does not know, no images at all.
        OSError: If a folder must not be read.
    """
    if os.path.isdir(path):
        _check_class_folders(Path(path), classes)
    try:
        return create_reader("", root=path, class_map=dict(classes) if classes else "")
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"{path}: no images in class folders ({str(error).splitlines()[0]})") from None


def _check_class_folders(root: Path, classes: Mapping[str, int] | None) -> None:
    from timm.data.readers.img_extensions import get_img_extensions

    endings = get_img_extensions(as_set=True)
    folders = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    for folder in folders:
        names = (name for _, _, names in os.walk(folder, followlinks=True, onerror=_raise) for name in names)
        if not any(os.path.splitext(name)[1].lower() in endings for name in names):
            raise ValueError(f"{folder}: the class folder holds no images; fill it or remove it")
        if classes is not None and folder.name not in classes and any(p.is_file() for p in folder.iterdir()):
            known = ", ".join(list(classes)[:5]) + (", …" if len(classes) > 5 else "")
            raise ValueError(f"{folder}: the class {folder.name!r} is not among the training classes ({known})")


def _raise(error: OSError) -> None:
    raise error


def open_hugging_face(name: str, split: str) -> Any:
    """timm's reader of a Hugging Face data set with the columns ``image`` and ``label``.

    Args:
        name: A data set's name or local folder, as ``datasets.load_dataset`` takes it.
        split: One of its splits.

    Raises:
        ValueError: If `datasets` is not installed, or it cannot be loaded.
    """
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise ValueError("Hugging Face data sets need datasets: pip install 'vmamba[train]'") from None
    try:
        return create_reader(f"hfds/{name}", split=split)
    except Exception as error:  # the library raises nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name}: cannot load the data set's split {split!r}: {reason}") from None


def hold_out(reader: Any, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into (training, validation), the same share of every class, at least one of each.

    Args:
        reader: One of timm's.
        share: Of the images to hold out, between 0 and 1.
        seed: Of the choice.
    """
    labels = _labels(reader)
    generator = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        held += members[: max(1, round(share * len(members)))].tolist()
    kept = set(held)
    return [i for i in range(len(labels)) if i not in kept], sorted(held)


def class_numbers(reader: Any) -> dict[str, int]:
    """Class name → number, as a reader of timm has it; empty where it does not know."""
    return dict(getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {})


def median_side(images: ClassifiedImages, looked_at: int = 64) -> int:
    """Median over some images, evenly spread, of the geometric mean of their height and width, in pixels.

    Raises:
        ValueError: If none of them can be read.
    """
    images = copy.deepcopy(images)  # an open tar file must not be shared with loader processes
    sides = []
    for i in np.linspace(0, len(images) - 1, min(looked_at, len(images))).astype(int):
        try:
            width, height = images.picture(int(i))[0].size
        except ImageError:
            continue
        sides.append(math.sqrt(width * height))
    _close_archives(images.reader)
    if not sides:
        raise ValueError("none of the first images can be read")
    return round(float(np.median(sides)))


def _close_archives(reader: Any) -> None:
    """Close the tar files that timm's reader keeps open."""
    state = getattr(reader, "tar_state", None)
    for archive in state.values() if isinstance(state, dict) else [state]:
        if archive is not None and archive.tf is not None:
            archive.tf.close()


def _labels(reader: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    if hasattr(reader, "targets"):
        return np.asarray(reader.targets, dtype=np.int64)
    if hasattr(reader, "samples"):
        return np.array([label for _, label in reader.samples], dtype=np.int64)
    return np.array(list(reader.iter_targets()), dtype=np.int64)
