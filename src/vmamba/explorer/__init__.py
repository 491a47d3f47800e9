"""A page that shows what the scans of a model look at: static files, for any web server.

The models run in the page by ONNX Runtime for browsers; nothing is asked of any other server. The page's own sources
are in ``page/``: HTML, CSS and ES modules, as they are served.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from vmamba.analysis.attention import Scan
from vmamba.checkpoints.info import info_of
from vmamba.data.images import read_image
from vmamba.errors import OptionError
from vmamba.explorer.model import write_operand_model, write_receptive_field_model
from vmamba.explorer.runtime import write_runtime
from vmamba.files import atomic_write
from vmamba.tasks.classification.prediction import class_names, evaluation_config

#: Ways of resizing that the page knows.
INTERPOLATIONS = ("bicubic", "bilinear")
#: Longest edge of the bundled pictures in pixels.
LONGEST_EDGE = 1024
#: Decays of a block, over routes, tokens, channels and states: above, a browser has not the memory for gradients.
MAX_DECAYS = 8_000_000


@dataclass(frozen=True)
class Exhibit:
    """A model that the page shows.

    Attributes:
        title: Its name there.
        model: A classifier of SS2D layers, in evaluation mode on the CPU.
        images: Pictures to choose from.
        image_size: Height and width of its input in pixels; None for its own.
        note: A sentence about it.
    """

    title: str
    model: nn.Module
    images: Sequence[Path] = field(default=())
    image_size: int | None = None
    note: str = ""


def write_site(folder: Path, exhibits: Sequence[Exhibit]) -> None:
    """Write the page with its models, its pictures and the runtime; files of these names are replaced.

    Args:
        folder: Of the page, ``index.html`` and what it needs.
        exhibits: The models, the first of which the page shows first.

    Raises:
        OptionError: For a model that the page cannot show.
        MissingPackageError: If npm, or a package that exporting needs, is not installed.
        DownloadError: If npm cannot get the runtime.
        ExportError: If an exported model does not agree with PyTorch.
        ImageError: If a picture cannot be read.
        OSError: If a file cannot be written.
    """
    write_runtime(folder / "onnxruntime")
    models = [_write_exhibit(exhibit, folder, f"models/{i}") for i, exhibit in enumerate(exhibits)]
    for file in resources.files(__name__).joinpath("page").iterdir():
        _write(folder / file.name, file.read_bytes())
    _write(folder / "site.json", json.dumps({"models": models}, ensure_ascii=False).encode())


def _write_exhibit(exhibit: Exhibit, folder: Path, place: str) -> dict[str, Any]:
    """Write the files of a model; returns what the page must know of it."""
    model, preprocessing = exhibit.model, describe_preprocessing(exhibit)
    size = preprocessing["image_size"]
    scans = write_operand_model(model, folder / place / "model.onnx", size)
    gradient = max(scan.x.numel() * scan.A.shape[1] * len(block) for block in scans.values() for scan in block)
    if gradient <= MAX_DECAYS:
        write_receptive_field_model(model, folder / place / "gradient.onnx", size)
    images = []
    for i, path in enumerate(exhibit.images):
        image = read_image(path)
        image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        images.append({"file": f"{place}/{i}.png", "title": path.stem.replace("_", " ")})
        with atomic_write(folder / images[-1]["file"]) as file:
            image.save(file, format="png")
    return {
        "title": exhibit.title,
        "note": exhibit.note,
        "file": f"{place}/model.onnx",
        "gradient": f"{place}/gradient.onnx" if gradient <= MAX_DECAYS else None,
        "preprocessing": preprocessing,
        "class_names": list(class_names(_classes(model), known=info_of(model).class_names or ())),
        "blocks": [describe_block(name, block) for name, block in scans.items()],
        "images": images,
    }


def describe_preprocessing(exhibit: Exhibit) -> dict[str, Any]:
    """The evaluation preprocessing in the page's words: resize the short edge, crop the centre, normalise.

    Raises:
        OptionError: If the page knows no such preprocessing.
    """
    config = evaluation_config(exhibit.model, exhibit.image_size)
    channels, *size = config["input_size"]
    if channels != 3 or len(set(size)) > 1 or config["interpolation"] not in INTERPOLATIONS:
        raise OptionError(
            f"the page takes square RGB images, resized {' or '.join(INTERPOLATIONS)}; "
            f"{exhibit.title} takes {config['input_size']}, resized {config['interpolation']}"
        )
    return {
        "image_size": size[0],
        "resize": math.floor(size[0] / config["crop_pct"]),
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def _classes(model: nn.Module) -> int:
    classes = getattr(model, "num_classes", 0)
    if not isinstance(classes, int) or classes < 1:
        raise OptionError(f"{type(model).__name__} is no classifier; the page shows classifiers")
    return classes


def describe_block(name: str, block: Sequence[Scan]) -> dict[str, Any]:
    """A block for the page: its grid in tokens, and its routes in the order of the operands."""
    scans = [{"name": scan.name, "mirrored": scan.mirrored, **dataclasses.asdict(scan.route)} for scan in block]
    return {"name": name, "grid": block[0].grid, "scans": scans}


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
