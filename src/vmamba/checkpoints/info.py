"""Purpose and use of weights: the JSON file beside them.

``model.json`` beside ``model.safetensors``::

    {
      "format": 2,
      "task": "classification",
      "architecture": {"dims": [24, 48, 96, 192], …},
      "class_names": ["cat", "dog"],
      "preprocessing": {"image_size": 224, "mean": [0.485, …], "std": [0.229, …], …},
      "training": {"recipe": "finetune", "epochs": 20, "top1": 93.1}
    }

Files of the first release, which hold the fields of the configuration alone, are read too, and where there is none the
``config.json`` of transformers.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import str_to_pil_interp
from torch import nn

from vmamba.errors import CheckpointError, system_reason
from vmamba.files import require_file
from vmamba.model.config import VMambaConfig

Task = Literal["classification", "detection", "segmentation"]

#: Version of the layout; the first had none.
FORMAT = 2
#: Bytes; room for the names of a million classes.
MAX_SIZE = 64 << 20
MAX_PIXELS = 1 << 16


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images for evaluation and prediction, in timm's words.

    Classification resizes the short side to ``image_size / crop_pct`` and crops the centre. Detection and segmentation
    resize the short side to `image_size`, or less where the long side would exceed `max_size`.

    Attributes:
        image_size: Pixels; None to keep the size of each image.
        max_size: Limit of the long side in pixels; None for no limit.
        mean: Of each channel, images being in [0, 1].
        std: Likewise.
        interpolation: ``"bicubic"``, ``"bilinear"`` …, a name of timm's.
        crop_pct: Fraction of the short side that the centre crop keeps.

    Raises:
        ValueError: For impossible values, in one line.
    """

    image_size: int | None = 224
    max_size: int | None = None
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875

    def __post_init__(self) -> None:
        for name in ("image_size", "max_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= MAX_PIXELS):
                raise ValueError(
                    f"preprocessing: {name} must be pixels from 1 to {MAX_PIXELS} or null, got {_short(value)}"
                )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not values or not all(map(_is_number, values)):
                raise ValueError(f"preprocessing: {name} must be numbers, one a channel, got {_short(values)}")
            object.__setattr__(self, name, tuple(values))
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError("preprocessing: mean and std must have one number a channel, std above 0")
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise ValueError(f"preprocessing: crop_pct must be above 0 and at most 1, got {_short(self.crop_pct)}")
        try:
            str_to_pil_interp(self.interpolation)
        except (KeyError, TypeError):
            raise ValueError(f"preprocessing: unknown interpolation {_short(self.interpolation)}") from None

    def for_channels(self, in_chans: int) -> Preprocessing:
        """The same for images of other channels: one number serves all of them, their average serves one.

        Raises:
            ValueError: For any other change.
        """
        count = len(self.mean)
        if count == in_chans:
            return self
        if 1 not in (count, in_chans):
            raise ValueError(f"preprocessing: mean has {count} numbers, the images of the model {in_chans} channels")
        mean, std = (sum(values) / count for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=(mean,) * in_chans, std=(std,) * in_chans)


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model, attached to it as ``model.info`` when it is loaded from a checkpoint.

    Attributes:
        task: What the model does.
        architecture: Fields of its configuration: `VMambaConfig`, `MaskRCNNConfig` or `UperNetConfig`.
        class_names: One a class, in order; empty where they are not known.
        preprocessing: Of its images; None where it is not known.
        training: Summary of the run that made the weights: recipe, data, epochs, results …

    Raises:
        ValueError: For values of another type, in one line.
    """

    task: Task = "classification"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {_short(self.task)}")
        for name in ("architecture", "training"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be an object, got {type(getattr(self, name)).__name__}")
        names = self.class_names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ValueError("class_names must be a list of strings")
        object.__setattr__(self, "class_names", tuple(names))

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The same in timm's words, for ``timm.data.resolve_data_config`` and the like; empty where not known."""
        cfg: dict[str, Any] = {"label_names": list(self.class_names)} if self.class_names else {}
        if self.preprocessing is not None:
            prepare = self.preprocessing
            size = prepare.image_size or Preprocessing.image_size
            cfg |= {
                "input_size": (len(prepare.mean), size, size),
                "mean": prepare.mean,
                "std": prepare.std,
                "interpolation": prepare.interpolation,
                "crop_pct": prepare.crop_pct,
            }
        return cfg

    def to_json(self) -> str:
        """A JSON object; `from_json` reads it back."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelInfo:
        """Read a JSON object of this or the first format.

        Raises:
            ValueError: If it is none, or for unknown names and impossible values, in one line.
        """
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, got {type(values).__name__}")
        if values.get("model_type") == "vmamba":
            return cls._from_transformers(values)
        if "format" not in values:
            task = values.pop("task", "classification")
            names = values.pop("classes", ()) if "backbone" in values else ()
            return cls(task, values, names)
        version = values.pop("format")
        if version != FORMAT:
            raise ValueError(f"format {_short(version)} is not known; it takes a newer version of vmamba")
        _refuse_unknown(values, cls, "")
        return cls(**values | {"preprocessing": _preprocessing(values.get("preprocessing"))})

    @classmethod
    def _from_transformers(cls, values: Mapping[str, Any]) -> ModelInfo:
        """From the ``config.json`` of `VMambaForImageClassification.save_pretrained`."""
        fields = [f.name for f in dataclasses.fields(VMambaConfig)]
        labels, prepare = values.get("id2label") or {}, values.get("preprocessing")
        if not isinstance(labels, dict):
            raise ValueError("id2label must be an object")
        names = tuple(labels.get(str(i)) for i in range(len(labels)))
        return cls(
            architecture={name: values[name] for name in fields if name in values},
            class_names=() if names == tuple(f"LABEL_{i}" for i in range(len(names))) else cast(Any, names),
            preprocessing=_preprocessing(prepare),
        )


def info_path(weights: str | Path) -> Path:
    """Path of the description of a ``.safetensors`` file: beside it, ``.json``."""
    return Path(weights).with_suffix(".json")


def read_info(weights: str | Path) -> ModelInfo | None:
    """The description beside a weights file, or None if there is none.

    Raises:
        CheckpointError: If it is there and not valid.
    """
    path = info_path(weights)
    if path == Path(weights):
        return None
    if not path.exists():
        path = path.with_name("config.json")  # of transformers, or anybody's
        if not _is_of_transformers(path):
            return None
    try:
        require_file(path)
        if path.stat().st_size > MAX_SIZE:
            raise ValueError(f"larger than {MAX_SIZE >> 20} MB, which no description is")
        return ModelInfo.from_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {system_reason(error)}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; correct it, or remove it to do without") from None


def _is_of_transformers(path: Path) -> bool:
    """True for the configuration of a VMamba that transformers has saved."""
    try:
        require_file(path)
        return path.stat().st_size <= MAX_SIZE and json.loads(path.read_bytes()).get("model_type") == "vmamba"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def attach_info(model: nn.Module, info: ModelInfo | None) -> None:
    """Give a model its description, ``model.info``, and timm's form of it, ``model.pretrained_cfg``."""
    described = cast(Any, model)
    if info is not None:
        described.info = info
        described.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **info.pretrained_cfg}
    described.info = info_of(model)


def info_of(model: nn.Module) -> ModelInfo:
    """The description of a model of ours: that of the file it comes from, with its present configuration and classes.

    Args:
        model: A model whose ``config`` is a dataclass; ``task``, where it has one, says what it is for.
    """
    known = getattr(model, "info", None)
    info = known if isinstance(known, ModelInfo) else ModelInfo()
    if not hasattr(model, "config"):  # an exported file, which its description is all about
        return info
    architecture = dataclasses.asdict(cast(Any, model.config))
    if "classes" in architecture:  # of a detector or segmenter, stated once
        names = tuple(architecture.pop("classes"))
    else:
        names = info.class_names if len(info.class_names) == architecture["num_classes"] else ()
    return dataclasses.replace(
        info, task=getattr(model, "task", "classification"), architecture=architecture, class_names=names
    )


def _preprocessing(values: object) -> Preprocessing | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError("preprocessing must be an object or null")
    _refuse_unknown(values, Preprocessing, "preprocessing: ")
    return Preprocessing(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6  # false for NaN


def _short(value: object) -> str:
    return reprlib.repr(value)


def _refuse_unknown(values: Mapping[str, Any], kind: type[Any], where: str) -> None:
    known = [f.name for f in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name[:80], known, n=1)
            raise ValueError(f"{where}unknown entry {_short(name)}" + (f"; do you mean {near[0]!r}?" if near else ""))
