"""The golden outputs of the authors' implementation, and how far from them results are."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def _load_synthetic() -> ModuleType:
    """The generator of weights and images that the golden outputs were computed from."""
    spec = importlib.util.spec_from_file_location("golden_synthetic", GOLDEN / "synthetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


synthetic = _load_synthetic()


def synthetic_state_dict(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in synthetic.state_dict(shapes).items()}


@dataclass
class Golden:
    """One golden file: what went in and what came out."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Golden:
        with safe_open(path, "pt") as file:
            metadata = {key: _decode(value) for key, value in (file.metadata() or {}).items()}
            return cls(metadata, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118

    @property
    def image(self) -> Tensor:
        image = self.metadata["image"]
        name, *shape = image.split(",") if isinstance(image, str) else image
        return torch.from_numpy(synthetic.image(name, *map(int, shape)))


def _decode(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; inf where one is not finite."""
    got, expected = got.detach().double(), expected.detach().double()
    if not got.isfinite().all():
        return float("inf")
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))
