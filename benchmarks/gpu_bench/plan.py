"""What is measured: shapes of scans, models and sizes of images, and what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Ends the names of our models in the form of `vmamba.freeze`.
FROZEN = ", frozen"


@dataclass(frozen=True)
class Shape:
    """A scan: tokens (batch, height, width, channels), rank of the Δ projection, states, storage."""

    label: str
    batch: int
    height: int
    width: int
    channels: int
    rank: int
    states: int = 1
    dtype: torch.dtype = torch.bfloat16

    @property
    def values(self) -> int:
        """Tokens times channels."""
        return self.batch * self.height * self.width * self.channels

    def minimum_bytes(self, backward: bool) -> int:
        """What must move: x and dbc in, y out; with the backward pass also x, dbc and dy in, dx and ddbc out.

        The parameters do not count: they stay in the caches.
        """
        features, projected = self.channels, 4 * (self.rank + 2 * self.states)
        values = 2 * features + projected + (3 * features + 2 * projected if backward else 0)
        return self.batch * self.height * self.width * values * self.dtype.itemsize

    def exponentials(self, backward: bool) -> int:
        """One for Δ and one for the decay of each state, per value and route; the backward pass needs them again."""
        return self.values * 4 * (1 + self.states) * (2 if backward else 1)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        small: Scans that are only checked.
        first: Scans that are checked and timed first, of the sizes of `families`.
        large: Scans of single large images, checked and timed later.
        families: Models that are compared with each other, ours first.
        others: Further peers of our first model.
        batch: Images per step of the models.
        size: Of their images, in pixels.
        growth: Models whose time is followed over `sizes`, at batch 1; ours first.
        copied: Bytes of the buffer whose copy measures the memory.
        compiler: The backend of ``torch.compile``.
        inference: Speed of our first model that was aimed at, relative to its peers, compiled.
        training: The same for whole steps of training.
        compared_sizes: Sizes between which the time per pixel must not grow.
    """

    small: tuple[Shape, ...]
    first: tuple[Shape, ...]
    large: tuple[Shape, ...]
    families: dict[str, tuple[str, ...]]
    others: tuple[str, ...]
    batch: int
    size: int
    growth: tuple[str, ...]
    sizes: tuple[int, ...]
    copied: int
    compiler: str
    inference: dict[str, float]
    training: dict[str, float]
    compared_sizes: tuple[int, int]

    @property
    def ours(self) -> str:
        """Our model that the goals are about."""
        return next(iter(self.families.values()))[0]


def stages(label: str, batch: int, size: int) -> tuple[Shape, ...]:
    """The scans of `vmamba_tiny_s1l8` for square images."""
    sizes = ((4, 96, 6), (8, 192, 12), (16, 384, 24), (32, 768, 48))
    return tuple(
        Shape(f"{label} stage {i}", batch, size // stride, size // stride, channels, rank)
        for i, (stride, channels, rank) in enumerate(sizes, 1)
    )


_F32 = torch.float32
_SWIN, _CONVNEXT, _DEIT = "swin_tiny_patch4_window7_224", "convnext_tiny", "deit_small_patch16_224"
FULL = Plan(
    small=(
        Shape("one token", 2, 1, 1, 7, 3, 1, _F32),
        Shape("one patch", 2, 5, 3, 96, 6, 1, _F32),
        Shape("many patches", 2, 37, 50, 40, 6, 1, _F32),
        Shape("16 states", 1, 19, 33, 32, 6, 16, _F32),
    ),
    first=stages("224²", 128, 224),
    large=stages("1024²", 1, 1024) + stages("2048²", 1, 2048),
    families={
        "T": ("vmamba_tiny_s1l8", _SWIN, _CONVNEXT),
        "S": ("vmamba_small_s1l20", "swin_small_patch4_window7_224", "convnext_small"),
        "B": ("vmamba_base_s1l20", "swin_base_patch4_window7_224", "convnext_base"),
    },
    others=("mambaout_tiny", _DEIT),
    batch=128,
    size=224,
    growth=("vmamba_tiny_s1l8", _SWIN, _CONVNEXT, _DEIT),
    sizes=(224, 384, 512, 768, 1024, 1536, 2048),
    copied=1 << 30,
    compiler="inductor",
    inference={_SWIN: 1.36, _CONVNEXT: 1.0},
    training={_SWIN: 1.0},
    compared_sizes=(512, 2048),
)
SMOKE = Plan(
    small=(Shape("one token", 1, 1, 1, 3, 2, 1, _F32),),
    first=(Shape("small", 1, 2, 3, 4, 2),),
    large=(),
    families={"T": ("vmamba_pico", "test_convnext")},
    others=(),
    batch=2,
    size=32,
    growth=("vmamba_pico",),
    sizes=(32, 64),
    copied=1 << 20,
    compiler="eager",
    inference={"test_convnext": 1.0},
    training={"test_convnext": 1.0},
    compared_sizes=(32, 64),
)
PLANS = {"full": FULL, "smoke": SMOKE}
