"""Results as the field writes them, from the names that files give them."""

from __future__ import annotations

import re

_SPELLED = {
    "top1": "top-1",
    "top5": "top-5",
    "miou": "mIoU",
    "macc": "mAcc",
    "aacc": "aAcc",
    "knn": "k-NN",
    "ema": "EMA",
    "lr": "learning rate",
}


def spelled(name: str) -> str:
    """``"mask_ap50"`` → ``"mask AP50"``, ``"miou"`` → ``"mIoU"``, ``"images_per_second"`` → ``"images per second"``."""
    words = name.split("_")
    return " ".join(_SPELLED.get(word) or (word.upper() if re.fullmatch(r"ap\d*", word) else word) for word in words)
