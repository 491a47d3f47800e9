"""Models by name, registered in timm."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from vmamba.checkpoints.download import download
from vmamba.checkpoints.info import attach_info
from vmamba.checkpoints.loading import adapted, load_weights
from vmamba.checkpoints.names import backbone_of, to_our_names
from vmamba.checkpoints.reading import Weights, read_checkpoint
from vmamba.checkpoints.recognition import Checkpoint, open_checkpoint
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.model.variants import VARIANTS
from vmamba.relatives import RELATIVES

default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": variant.url,
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
            "paper_name": "VMamba: Visual State Space Model",
            "paper_ids": "arXiv:2401.10166",
            "origin_url": "https://github.com/MzeroMiko/VMamba" if variant.url else "",
        }
        for name, variant in VARIANTS.items()
    }
)


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Entry point for timm: options of `VMambaConfig` shape the model, the others go to `VMamba`."""
    options = {field.name for field in dataclasses.fields(VMambaConfig)}

    def build(**model_kwargs: Any) -> VMamba:
        overrides = {key: model_kwargs.pop(key) for key in options & model_kwargs.keys()}
        return VMamba(dataclasses.replace(VARIANTS[name].config, **overrides), **model_kwargs)

    stages = len(kwargs.get("depths", VARIANTS[name].config.depths))
    feature_cfg: dict[str, Any] = {"out_indices": tuple(range(stages)), "flatten_sequential": True}
    if kwargs.get("stage_norms"):
        feature_cfg |= {"feature_cls": "getter", "norm": True}
    elif kwargs.get("pos_embed_size"):
        feature_cfg["feature_cls"] = "getter"  # the other form calls modules alone and would leave it out
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if pretrained and "state_dict" not in overlay:
        # The authors' files hold more than tensors: read here, never by a plain unpickler.
        state_dict = _pretrained_weights(name, overlay, kwargs)
        overlay |= {"state_dict": state_dict} if state_dict else {}
    model: nn.Module = build_model_with_cfg(
        build,
        name,
        pretrained,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=lambda state_dict, _: backbone_of(to_our_names(state_dict)),
        feature_cfg=feature_cfg,
        **kwargs,
    )
    cast(dict[str, Any], model.pretrained_cfg).pop("state_dict", None)
    return model


def _pretrained_weights(name: str, overlay: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint that timm's settings point to, unless it is timm's own business (a hub or a local folder)."""
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
    if cfg.source or (cfg.hf_hub_id and not cfg.file):
        return None
    if not cfg.file and not cfg.url:
        trained = ", ".join(n for n, variant in VARIANTS.items() if variant.url)
        raise OptionError(f"{name} has no published weights; models that do: {trained}")
    return read_checkpoint(cfg.file or download(cfg.url, directory=kwargs.get("cache_dir")))


def _register(name: str) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(name, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


for _name in VARIANTS:
    _register(_name)


def list_models(*, relatives: bool = False) -> list[str]:
    """Names of the registered models, the authors' first; with `relatives`, those of `vmamba.relatives` at the end.

    Example:
        >>> list_models()[:3]
        ['vanilla_vmamba_tiny', 'vanilla_vmamba_small', 'vanilla_vmamba_base']
    """
    return [*VARIANTS, *RELATIVES] if relatives else list(VARIANTS)


def architecture_of(name: str) -> VMambaConfig:
    """The configuration of a registered model.

    Raises:
        OptionError: For an unknown name; the nearest is suggested.
    """
    if name in RELATIVES:
        raise OptionError(f"{name} is a relative of VMamba: vmamba.create_model makes it, the commands do not know it")
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=1)
        hint = f"do you mean {near[0]!r}?" if near else f"choose one of {', '.join(VARIANTS)}"
        raise OptionError(f"unknown model {reprlib.repr(name)}; {hint}")
    return VARIANTS[name].config


def create_model(
    name: str, *, pretrained: bool = False, checkpoint: str | Path | None = None, **overrides: Any
) -> nn.Module:
    """Create a model by name; ``timm.create_model`` gives the same once `vmamba` is imported.

    Args:
        name: One of `list_models`, relatives included.
        pretrained: Load the authors' ImageNet-1K weights, downloaded once into torch's hub cache.
        checkpoint: Load these weights instead; see `load_weights`. Classes and channels are the checkpoint's; where
            `overrides` say otherwise, the classifier is a fresh one and the first convolution is adapted, as timm does
            for ``pretrained=True``.
        **overrides: Fields of `VMambaConfig` (``num_classes=0``, ``in_chans=1``, ``drop_path_rate=0.2`` …), options
            of `VMamba`, and those of ``timm.create_model`` (``features_only=True``, ``out_indices=…`` …).

    Raises:
        OptionError: For an unknown name (the nearest is suggested), impossible options, both `pretrained` and
            `checkpoint`, or `pretrained` for a model without published weights.
        TypeError: For an option that nobody takes.
        CheckpointError: If the checkpoint cannot be read or does not fit.
        DownloadError: If the weights cannot be fetched.

    Example:
        >>> import torch
        >>> model = create_model("vmamba_pico", num_classes=10)
        >>> model(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 10])
        >>> backbone = create_model("vmamba_pico", features_only=True, out_indices=(1, 2, 3))
        >>> [tuple(m.shape) for m in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 48, 8, 12), (1, 96, 4, 6), (1, 192, 2, 3)]
    """
    if name not in RELATIVES:
        architecture_of(name)
    if checkpoint is None:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **overrides)
        return model
    if pretrained:
        raise OptionError("give either pretrained=True or a checkpoint, not both")
    if name in RELATIVES:
        model = timm.create_model(name, **overrides)
        load_weights(model, checkpoint)
        return model
    opened = open_checkpoint(checkpoint)
    overrides = {"in_chans": opened.in_chans, **overrides}
    if opened.num_classes:
        overrides.setdefault("num_classes", opened.num_classes)
    model = timm.create_model(name, **overrides)
    fitted = adapted(opened, in_chans=overrides["in_chans"], num_classes=overrides.get("num_classes"))
    load_weights(model, fitted)
    if isinstance(model, VMamba):  # not a feature extractor
        attach_info(model, fitted.info)
    return model


def model_from_checkpoint(
    checkpoint: str | Path | Checkpoint,
    name: str | None = None,
    *,
    weights: Weights = "auto",
    config: VMambaConfig | None = None,
    **overrides: Any,
) -> VMamba:
    """The classifier that a checkpoint belongs to, with its weights.

    Its architecture is what is given: `config`, or the model `name`. Otherwise it is the one described beside the file
    (``.json``), or the registered variant whose entries it has. Classes and channels are the checkpoint's.
    ``model.info`` says what else is known of it, see `vmamba.checkpoints.info`.

    Args:
        checkpoint: Path of a ``.safetensors`` or ``torch.save`` file, or an opened checkpoint.
        name: One of `list_models`.
        weights: See `vmamba.checkpoints.reading.read_checkpoint`.
        config: An architecture.
        **overrides: Other fields of `VMambaConfig` than the checkpoint's: ``num_classes=3`` (a fresh classifier),
            ``in_chans=1`` (the first convolution is adapted), ``drop_path_rate=0.2``.

    Raises:
        CheckpointError: If the checkpoint cannot be read, is no classifier's, fits no known variant, or does not fit
            the one named.
        OptionError: For an unknown name or impossible overrides.
    """
    opened = open_checkpoint(checkpoint, weights)
    opened.expect("classification")
    architecture = opened.architecture(config if name is None else architecture_of(name))
    classes = overrides.pop("num_classes", architecture.num_classes)
    architecture = architecture.override(overrides)
    with torch.device("meta"):
        model = VMamba(architecture)
    fitted = adapted(opened, in_chans=architecture.in_chans)
    load_weights(model, fitted)
    if classes != architecture.num_classes:
        model.reset_classifier(classes)
    attach_info(model, fitted.info)
    return model
