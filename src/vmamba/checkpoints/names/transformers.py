"""Names in files of transformers: ``vmamba.`` in front, alone or within the ``backbone.`` of a dense model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vmamba.checkpoints.stored import Entry

_PREFIX = re.compile(r"^(backbone\.)?vmamba\.")


def recognises(names: Collection[str]) -> bool:
    return any(_PREFIX.match(name) for name in names)


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {_PREFIX.sub(r"\1", name): entry for name, entry in entries.items()}
