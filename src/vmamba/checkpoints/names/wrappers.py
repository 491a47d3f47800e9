"""Names that PyTorch's wrappers put before or between others: DDP, compilation, FSDP, checkpointing, averaging."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vmamba.checkpoints.stored import Entry

_ANYWHERE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_flat_param)\.")
_IN_FRONT = "module."
#: Counter of `torch.optim.swa_utils.AveragedModel`.
_AVERAGED = "n_averaged"


def recognises(names: Collection[str]) -> bool:
    return any(name.startswith(_IN_FRONT) or name == _AVERAGED or _ANYWHERE.search(name) for name in names)


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    plain = {_ANYWHERE.sub("", name): entry for name, entry in entries.items() if name != _AVERAGED}
    while any(name.startswith(_IN_FRONT) for name in plain):
        plain = {name.removeprefix(_IN_FRONT): entry for name, entry in plain.items()}
    return plain
