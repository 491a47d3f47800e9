"""Relatives of VMamba by name, registered in timm beside `vmamba.zoo`'s models; untrained here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from vmamba.errors import OptionError
from vmamba.model import efficient_vmamba, local_vmamba
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig


@dataclass(frozen=True)
class Relative:
    """A model of another paper on our layers and operators.

    Attributes:
        model: Its class.
        config: Its architecture.
        paper: Title and arXiv number.
    """

    model: type[VMamba]
    config: VMambaConfig
    paper: tuple[str, str]


_LOCAL = ("LocalMamba: Visual State Space Model with Windowed Selective Scan", "2403.09338")
_EFFICIENT = ("EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", "2403.09977")

RELATIVES: dict[str, Relative] = {
    "local_vmamba_tiny": Relative(local_vmamba.LocalVMamba, local_vmamba.TINY, _LOCAL),
    "local_vmamba_small": Relative(local_vmamba.LocalVMamba, local_vmamba.SMALL, _LOCAL),
    "efficient_vmamba_tiny": Relative(efficient_vmamba.EfficientVMamba, efficient_vmamba.TINY, _EFFICIENT),
    "efficient_vmamba_small": Relative(efficient_vmamba.EfficientVMamba, efficient_vmamba.SMALL, _EFFICIENT),
}

default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stem.conv1",
            "classifier": "head.fc",
            "license": "mit",
            "paper_name": relative.paper[0],
            "paper_ids": f"arXiv:{relative.paper[1]}",
        }
        for name, relative in RELATIVES.items()
    }
)


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    relative = RELATIVES[name]
    if pretrained:
        raise OptionError(f"{name} has no weights that this package can load; create it without pretrained=True")

    def build(**options: Any) -> VMamba:
        fields = {field.name for field in dataclasses.fields(relative.config)} & options.keys()
        config = dataclasses.replace(relative.config, **{key: options.pop(key) for key in fields})
        return relative.model(config, **options)

    stages = len(kwargs.get("depths", relative.config.depths))
    feature_cfg = {"out_indices": tuple(range(stages)), "flatten_sequential": True}
    model: nn.Module = build_model_with_cfg(build, name, pretrained, feature_cfg=feature_cfg, **kwargs)
    return model


def _register(name: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


for _name in RELATIVES:
    _register(_name)
