"""Entry names of other libraries, translated into ours: one module a naming scheme.

Ours are those of `VMamba` for a classifier or a backbone. In a detector or segmenter these follow ``backbone.``, beside
the names of the heads in `MaskRCNN` and `UperNet`.

Schemes lie in one another: a Lightning module around a compiled model in the authors' names. Each module takes its own
step towards ours, outermost first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from vmamba.checkpoints.names import authors, lightning, openmmlab, timm, transformers, wrappers
from vmamba.checkpoints.stored import Entry


class Adapter(Protocol):
    """A naming scheme."""

    def recognises(self, names: Collection[str]) -> bool:
        """True if `translate` has something to do."""
        ...

    def translate(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """The entries by other names, perhaps in other shapes."""
        ...


ADAPTERS: tuple[Adapter, ...] = (wrappers, lightning, transformers, timm, openmmlab, authors)


def to_our_names(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Weights by our names and in our shapes, from whatever names they have."""
    ours = dict(entries)
    for adapter in ADAPTERS:
        if adapter.recognises(ours.keys()):
            ours = adapter.translate(ours)
    return ours


def backbone_of(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries of the backbone, by its own names; all of them where there is nothing around it."""
    inner = {name.removeprefix("backbone."): entry for name, entry in entries.items() if name.startswith("backbone.")}
    return inner or dict(entries)
