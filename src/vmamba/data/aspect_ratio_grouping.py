"""Batches of images of like aspect ratio, so that little is padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vmamba.data.loader import IndexedLoader


class AspectRatioGroupedLoader(IndexedLoader[Any]):
    """`IndexedLoader` whose training batches hold images of one group: taller than wide, or not.

    Each epoch's order is shuffled, then dealt into batches of one group as they fill up; what is left over of each
    group comes last.

    Args:
        *args: Of `IndexedLoader`.
        group_ids: Group of each image.
        **kwargs: Of `IndexedLoader`.
    """

    def __init__(self, *args: Any, group_ids: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group_ids = group_ids

    def order(self, epoch: int) -> Sequence[int]:
        """Every image once; runs of `batch_size` images, but for the last ones, are of one group."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.images).tolist()
        full: list[int] = []
        filling: dict[int, list[int]] = {group: [] for group in sorted(set(self._group_ids))}
        for index in shuffled:
            batch = filling[self._group_ids[index]]
            batch.append(index)
            if len(batch) == self.batch_size:
                full += batch
                batch.clear()
        return full + [index for batch in filling.values() for index in batch]
