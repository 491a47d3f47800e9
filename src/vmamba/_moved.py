"""Import paths that README and docs of the first release named; they work, with a warning, until the next release."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CHECKPOINTS = {
    "CheckpointError": "vmamba.errors",
    "LoadResult": "vmamba.checkpoints.loading",
    "load_weights": "vmamba.checkpoints.loading",
    "read_checkpoint": "vmamba.checkpoints.reading",
    "identify": "vmamba.checkpoints.recognition",
    "save_weights": "vmamba.checkpoints.saving",
}
_CLASSIFICATION = dict.fromkeys(
    ("Prediction", "class_names", "eval_transform", "predict"), "vmamba.tasks.classification.prediction"
)

#: Old module → its names, and the modules that have them now.
MOVED: dict[str, dict[str, str]] = {
    "vmamba.model.checkpoint": _CHECKPOINTS,
    "vmamba.model.zoo": {
        "VARIANTS": "vmamba.model.variants",
        "Variant": "vmamba.model.variants",
        **dict.fromkeys(("create_model", "list_models", "model_from_checkpoint"), "vmamba.zoo"),
    },
    "vmamba.tasks.classification": _CLASSIFICATION,
    "vmamba.tasks.classification_training": {"ClassificationOptions": "vmamba.tasks.classification.options"},
    "vmamba.tasks.dense_checkpoint": {
        "load_detector": "vmamba.tasks.detection.checkpoint",
        "load_segmenter": "vmamba.tasks.segmentation.checkpoint",
    },
    "vmamba.tasks.mask_rcnn": dict.fromkeys(("MaskRCNN", "MaskRCNNConfig"), "vmamba.tasks.detection.mask_rcnn"),
    "vmamba.tasks.upernet": dict.fromkeys(("UperNet", "UperNetConfig"), "vmamba.tasks.segmentation.upernet"),
}


def moved(module: str, name: str) -> Any:
    """The object that ``module.name`` was, with a warning that says where it is now.

    Raises:
        AttributeError: If there was nothing of this name.
    """
    if name not in MOVED[module]:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    place = MOVED[module][name]
    warnings.warn(
        f"{module}.{name} has moved to {place}; the old path goes with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(importlib.import_module(place), name)


class _Moved(MetaPathFinder, Loader):
    """Finds the old modules that are no more; asked after all others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__

        def lookup(attribute: str) -> Any:
            return moved(name, attribute)

        module.__dict__.update(__getattr__=lookup, __all__=list(MOVED[name]))


sys.meta_path.append(_Moved())
