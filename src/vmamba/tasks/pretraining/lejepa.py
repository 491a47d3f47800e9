"""LeJEPA: embeddings of global and local views of an image agree, and are spread as an isotropic Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, cast

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from vmamba.data.views import random_view
from vmamba.model.backbone import VMamba
from vmamba.settings import Settings
from vmamba.tasks.pretraining.options import LeJEPAOptions
from vmamba.tasks.pretraining.sigreg import invariance, random_directions, sigreg
from vmamba.tasks.pretraining.task import Pretrainer, Pretraining, ViewBatch


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of the batch at hand, in training over all processes: (B, C) → (B, C).

    PyTorch's `SyncBatchNorm` does that on GPUs alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        moments = torch.stack([values.mean(0), values.square().mean(0)])
        if self.training and dist.is_initialized():
            moments = all_reduce(moments) / dist.get_world_size()
        mean, square = moments
        scale = self.weight * (square - mean.square()).clamp(min=0).add(1e-5).rsqrt()
        return ((values - mean) * scale + self.bias).to(x.dtype)


class LeJEPAPretrainer(Pretrainer):
    """A backbone with a projector. Without batch normalisation the features of a fresh backbone, which are nearly the
    same for all images, take several times as many steps to spread.

    Args:
        backbone: Without a classifier.
        hidden: Width of the projector.
        embedding: Width of its output.
    """

    def __init__(self, backbone: VMamba, hidden: int, embedding: int) -> None:
        super().__init__(backbone)
        layers: list[nn.Module] = []
        for width in (backbone.num_features, hidden):
            layers += [nn.Linear(width, hidden), BatchNorm(hidden), nn.GELU()]
        self.projector = nn.Sequential(*layers, nn.Linear(hidden, embedding))

    def forward(self, kinds: tuple[Tensor, ...]) -> Tensor:
        """Embeddings (V, N, D) of stacks of views, each (V', N, 3, S, S), in their order."""
        same = all(views.shape[3:] == kinds[0].shape[3:] for views in kinds)
        stacks = (torch.cat(kinds),) if same else kinds
        return torch.cat([self.projector(self.features(v.flatten(0, 1))).unflatten(0, v.shape[:2]) for v in stacks])


class LeJEPA(Pretraining):
    """See `vmamba.tasks.protocol.Task`."""

    name: ClassVar[str] = "lejepa"
    Options: ClassVar[type[Settings]] = LeJEPAOptions

    @property
    def _options(self) -> LeJEPAOptions:
        return cast(LeJEPAOptions, self.options)

    def setup(self, *, training: bool = True) -> None:
        super().setup(training=training)
        size = cast(int, self.options.image_size)
        self.options = self.options.replace(local_size=self._options.local_size or max(32, round(size / 64) * 32))

    def views(self) -> list[tuple[int, Callable[[Image.Image], Tensor]]]:
        options, prepare = self._options, self.preprocessing
        common = ("interpolation", "hflip", "color_jitter", "grayscale", "blur")

        def view(size: int | None, scale: tuple[float, float]) -> Callable[[Image.Image], Tensor]:
            return random_view(
                cast(int, size),
                scale=scale,
                ratio=options.crop_ratio,
                mean=prepare.mean,
                std=prepare.std,
                **{name: getattr(options, name) for name in common},
            )

        return [
            (options.global_views, view(options.image_size, options.global_scale)),
            (options.local_views, view(options.local_size, options.local_scale)),
        ]

    def build_pretrainer(self, backbone: VMamba) -> Pretrainer:
        return LeJEPAPretrainer(backbone, self._options.hidden, self._options.embedding)

    def loss(self, model: nn.Module, batch: ViewBatch, *, distributed: bool | None = None) -> dict[str, Tensor]:
        options, device = self._options, batch.views[0].device
        together = dist.is_initialized() if distributed is None else distributed
        # Drawn before the model draws anything, so that they do not depend on the images of this process.
        directions = random_directions(options.embedding, options.directions, device, distributed=together)
        embeddings = model(batch.views)
        with torch.autocast(device.type, enabled=False):
            gaussian = sigreg(embeddings, directions, distributed=together)
            agreement = invariance(embeddings, options.global_views)
            weight = options.sigreg_weight
            loss = weight * gaussian + (1 - weight) * agreement
        return {"loss": loss, "sigreg": gaussian, "invariance": agreement}
