"""Names in files of transformers: ``vmamba.`` in front, alone or within the ``backbone.`` of a dense model."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vmamba.checkpoints.stored import Entry

_PREFIX = "vmamba."
_BACKBONE = re.compile(r"^backbone\.vmamba\.")


def recognises(names: Collection[str]) -> bool:
    return any(name.startswith(_PREFIX) or _BACKBONE.match(name) for name in names)


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Entries beside a ``vmamba.`` at the top are those of somebody's losses and heads, and left out."""
    inner = {name.removeprefix(_PREFIX): entry for name, entry in entries.items() if name.startswith(_PREFIX)}
    return inner or {_BACKBONE.sub("backbone.", name): entry for name, entry in entries.items()}
