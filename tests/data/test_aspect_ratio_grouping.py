"""Batches of one group of images."""

from __future__ import annotations

from vmamba.data.aspect_ratio_grouping import AspectRatioGroupedLoader


def test_batches_hold_one_group() -> None:
    group_ids = [i % 3 for i in range(50)]
    loader = AspectRatioGroupedLoader(range(50), list, group_ids=group_ids, batch_size=4, training=True, seed=1)
    for epoch in (0, 1):
        assert sorted(loader.order(epoch)) == list(range(50))
        groups = [{group_ids[i] for i in batch} for batch in loader.indices(epoch)]
        assert sum(len(group) > 1 for group in groups) <= 2
    assert list(loader.order(0)) != list(loader.order(1))
