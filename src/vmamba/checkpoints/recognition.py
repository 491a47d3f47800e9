"""Recognise the model that weights belong to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vmamba.model.backbone import VMamba
from vmamba.model.variants import VARIANTS


def identify(state_dict: Mapping[str, Tensor]) -> str | None:
    """Name of the registered variant whose stem and stages have these entries (our names) and shapes."""
    shapes = {n: tuple(t.shape) for n, t in state_dict.items() if n.startswith(("stem.", "stages."))}
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            candidate = VMamba(variant.config).state_dict()
        if shapes == {n: tuple(t.shape) for n, t in candidate.items() if n.startswith(("stem.", "stages."))}:
            return name
    return None
