"""Names in timm's ``features_only`` models: stages without their dots (``stages_0.``)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vmamba.checkpoints.stored import Entry

_STAGE = re.compile(r"^stages_(\d+)\.")


def recognises(names: Collection[str]) -> bool:
    return any(_STAGE.match(name) for name in names)


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {_STAGE.sub(r"stages.\1.", name): entry for name, entry in entries.items()}
