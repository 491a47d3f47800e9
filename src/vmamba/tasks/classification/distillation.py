"""Distillation: a classifier learns from the logits and features of a larger one, of any library in timm.

Logits as in Hinton et al. (arXiv:1503.02531). Features by which images of a batch resemble each other (Tung and Mori,
"Similarity-Preserving Knowledge Distillation", arXiv:1907.09682): no layer is needed between features of different
widths, so the student is an ordinary model, to the engine and in its checkpoints.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.reading import read_checkpoint
from vmamba.errors import CheckpointError, OptionError
from vmamba.model.variants import VARIANTS
from vmamba.zoo import model_from_checkpoint


class Teacher:
    """A trained classifier that is only asked.

    Args:
        name: timm's name of a model, ours included.
        checkpoint: Its weights.
        num_classes: Classes that it must know.
        prepared: Preprocessing of the images that it will see; they are normalised anew for the teacher.
        image_size: Height and width that images are resized to; None for the student's.

    Raises:
        OptionError: For an unknown name.
        CheckpointError: If the weights cannot be read, or do not fit that model with so many classes.
    """

    def __init__(
        self, name: str, checkpoint: str, num_classes: int, prepared: Preprocessing, image_size: int | None = None
    ) -> None:
        self.model = _load(name, checkpoint, num_classes).eval().requires_grad_(False)
        cfg = getattr(self.model, "pretrained_cfg", {})
        known = Preprocessing(mean=tuple(cfg.get("mean", prepared.mean)), std=tuple(cfg.get("std", prepared.std)))
        mean, std = (torch.tensor(values)[..., None, None] for values in (prepared.mean, prepared.std))
        own_mean, own_std = (torch.tensor(values)[..., None, None] for values in (known.mean, known.std))
        self._scale, self._shift = std / own_std, (mean - own_mean) / own_std
        self.image_size = image_size

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) and pooled features (B, C) of images as the student sees them, float32."""
        if next(self.model.parameters()).device != images.device:
            self.model.to(images.device)
        images = images * self._scale.to(images) + self._shift.to(images)
        if self.image_size is not None and images.shape[2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, size=self.image_size, mode="bicubic", antialias=True)
        model = cast(Any, self.model)
        maps = model.forward_features(images)
        return model.forward_head(maps).float(), model.forward_head(maps, pre_logits=True).flatten(1).float()


class FeatureTap:
    """The pooled features of a classifier's last forward pass in training, before its last linear layer.

    Args:
        model: With ``get_classifier``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.features = torch.empty(0)
        cast(Any, model).get_classifier().register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        if module.training:
            self.features = inputs[0]


def logits_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback–Leibler divergence from the softened teacher (B, classes), times the square of the temperature."""
    log_student, log_teacher = (F.log_softmax(logits.float() / temperature, 1) for logits in (student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def features_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance, from 0 to 4, of each image's similarities to the batch: features (B, C) and (B, C')."""
    ours, theirs = (F.normalize(features.float() @ features.float().T, dim=1) for features in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def _load(name: str, checkpoint: str, num_classes: int) -> nn.Module:
    if name in VARIANTS:
        model: nn.Module = model_from_checkpoint(checkpoint, name)
        if cast(Any, model).num_classes != num_classes:
            raise CheckpointError(
                f"{checkpoint}: the teacher knows {cast(Any, model).num_classes} classes, the data have {num_classes}; "
                "give one that was trained on these classes"
            )
        return model
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"do you mean {near[0]!r}?" if near else "timm.list_models() lists them"
        raise OptionError(f"teacher: timm has no model {reprlib.repr(name)}; {hint}")
    model = timm.create_model(name, num_classes=num_classes)
    try:
        model.load_state_dict(read_checkpoint(checkpoint))
    except RuntimeError as error:  # torch's own has a line for every entry; ours are CheckpointErrors, too
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{checkpoint}: does not fit the teacher {name} with {num_classes} classes; "
            "give one that was trained on these classes"
        ) from None
    return model
