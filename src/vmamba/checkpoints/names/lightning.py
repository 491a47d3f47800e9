"""Names in files of Lightning, where the model is an attribute of a module: ``model.`` or whatever it is called.

Entries of other attributes (losses, metrics, a teacher) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vmamba.checkpoints.stored import Entry

# The first layer, in our names and the authors'. A dense model's own prefixes are part of its names.
_FIRST_LAYER = re.compile(r"^((?:\w+\.)*?)(?:backbone\.)?(?:vmamba\.)?(?:stem\.conv1|patch_embed\.(?:0|proj))\.weight$")


def recognises(names: Collection[str]) -> bool:
    return bool(_prefix(names))


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    prefix = _prefix(entries.keys())
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def _prefix(names: Collection[str]) -> str:
    """Prefix of the model's names; of several models that of ``model.``, else the first."""
    prefixes = [match[1] for match in map(_FIRST_LAYER.match, names) if match]
    if "" in prefixes or not prefixes:
        return ""
    return "model." if "model." in prefixes else prefixes[0]
