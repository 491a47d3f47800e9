"""Results as the field writes them."""

from __future__ import annotations

import pytest

from vmamba.tasks.spelling import spelled


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("top1", "top-1"),
        ("ema_top5", "EMA top-5"),
        ("miou", "mIoU"),
        ("mask_ap50", "mask AP50"),
        ("box_ap_small", "box AP small"),
        ("ap", "AP"),
        ("apples", "apples"),
        ("images_per_second", "images per second"),
    ],
)
def test_spelled(name: str, expected: str) -> None:
    assert spelled(name) == expected
