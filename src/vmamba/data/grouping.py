"""Batches of images of like shape, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vmamba.data.loader import IndexedLoader


class AspectGroupedLoader(IndexedLoader[Any]):
    """`IndexedLoader` whose training batches hold either upright or lying images.

    Each epoch's order is shuffled, then dealt into batches of one kind as they fill up; what is left over of each
    kind comes last.

    Args:
        *args: Of `IndexedLoader`.
        upright: For each image, whether it is higher than wide.
        **kwargs: Of `IndexedLoader`.
    """

    def __init__(self, *args: Any, upright: Sequence[bool], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._upright = upright

    def order(self, epoch: int) -> Sequence[int]:
        """Every image once; runs of `batch_size` images, but for the last ones, are of one kind."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.images).tolist()
        full: list[int] = []
        filling: dict[bool, list[int]] = {False: [], True: []}
        for index in shuffled:
            batch = filling[bool(self._upright[index])]
            batch.append(index)
            if len(batch) == self.batch_size:
                full += batch
                batch.clear()
        return full + filling[False] + filling[True]
