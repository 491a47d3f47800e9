"""LeJEPA: embeddings of global and local views of an image agree, and are spread as an isotropic Gaussian.

Or, with `points`, the embeddings of single points of an image, which several of its views show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from vmamba.data.views import RandomView, common_points
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
        dense: Embed points, by the maps of all stages, each normalised and interpolated.
    """

    def __init__(self, backbone: VMamba, hidden: int, embedding: int, *, dense: bool = False) -> None:
        super().__init__(backbone)
        dims = backbone.config.dims
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims[:-1]) if dense else None
        layers: list[nn.Module] = []
        for width in (sum(dims) if dense else backbone.num_features, hidden):
            layers += [nn.Linear(width, hidden), BatchNorm(hidden), nn.GELU()]
        self.projector = nn.Sequential(*layers, nn.Linear(hidden, embedding))

    def forward(self, kinds: Sequence[Tensor], places: Sequence[Tensor] | None = None) -> Tensor:
        """Embeddings (V, N, D) of stacks of views, each (V', N, 3, S, S), in their order.

        Or (V, N P, D), of P places in each view, (V', N, P, 2), as `vmamba.data.views.common_points` has them.
        """
        if all(views.shape[3:] == kinds[0].shape[3:] for views in kinds):
            kinds, places = [torch.cat(list(kinds))], None if places is None else [torch.cat(list(places))]
        embedded = []
        for i, views in enumerate(kinds):
            images = views.flatten(0, 1)
            features = self.features(images) if places is None else self.features_at(images, places[i].flatten(0, 1))
            embedded.append(self.projector(features).unflatten(0, (len(views), -1)))
        return torch.cat(embedded)

    def features_at(self, images: Tensor, places: Tensor) -> Tensor:
        """Features (N P, C) of the maps of all stages of images (N, 3, H, W), at places (N, P, 2)."""
        assert self.norms is not None
        maps = cast(list[Tensor], self.backbone.forward_intermediates(images, norm=True, intermediates_only=True))
        for i, norm in enumerate(self.norms):  # the last map has the backbone's
            maps[i] = norm(maps[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        grid = places[:, :, None].to(images.device)
        sampled = [F.grid_sample(m.float(), grid, padding_mode="border", align_corners=False) for m in maps]
        return torch.cat(sampled, 1).squeeze(3).transpose(1, 2).flatten(0, 1)


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

    @property
    def overlapping(self) -> bool:
        return self._options.points > 0

    def views(self) -> list[tuple[int, RandomView]]:
        options, prepare = self._options, self.preprocessing
        common = ("interpolation", "hflip", "color_jitter", "hue", "grayscale", "invert", "blur")

        def view(size: int | None, scale: tuple[float, float]) -> RandomView:
            return RandomView(
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
        options = self._options
        return LeJEPAPretrainer(backbone, options.hidden, options.embedding, dense=options.points > 0)

    def loss(self, model: nn.Module, batch: ViewBatch, *, distributed: bool | None = None) -> dict[str, Tensor]:
        options, device = self._options, batch.views[0].device
        together = dist.is_initialized() if distributed is None else distributed
        # Drawn before the model draws anything, so that they do not depend on the images of this process.
        directions = random_directions(options.embedding, options.directions, device, distributed=together)
        places = common_points(batch.boxes, options.points) if options.points else None
        embeddings = model(batch.views, places)
        with torch.autocast(device.type, enabled=False):
            gaussian = sigreg(embeddings, directions, distributed=together)
            agreement = invariance(embeddings, options.global_views)
            weight = options.sigreg_weight
            loss = weight * gaussian + (1 - weight) * agreement
        return {"loss": loss, "sigreg": gaussian, "invariance": agreement}
