"""Damaged and hostile checkpoints by number: the same number gives the same file.

``write(seed, folder)`` makes one, ``outcome(path)`` loads it: "loaded" or "refused"; whatever else happens is raised.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from support.memory import at_most
from support.pickles import saved
from vmamba import VMamba, VMambaConfig
from vmamba.checkpoints.info import ModelInfo, info_of
from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.errors import CheckpointError
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.zoo import model_from_checkpoint

_CONFIG = VMambaConfig(dims=(4, 8, 8, 8), depths=(1, 1, 1, 1), num_classes=3)
#: Megabytes that loading one of these small files may take.
_MEMORY = 400

#: In place of a value in JSON.
_VALUES: list[Any] = [
    None, True, 0, -1, 1, 2, 7, 255, 65_536, 10**9, 10**18, 10**400, 0.0, -0.5, 1e18, 1e308, float("nan"), float("inf"),
    "", "x", "auto", "cross", "é\n\x1b", [], [[]], [1], [10**9] * 4, [0] * 1000, {}, {"a": 1}, "1", "F32", "I8",
]  # fmt: skip


def write(seed: int, folder: Path) -> Path:
    """The file of that number, its description beside it.

    Args:
        seed: The number.
        folder: Where to write them.
    """
    rng = random.Random(seed)
    kind = rng.choice(["zip", "legacy", "safetensors", "detector"])
    weights, description = _whole(kind)
    part = rng.choice(["weights", "weights", "description"])
    if part == "description":
        description = json.dumps(_changed(rng, json.loads(description))).encode()
        if rng.random() < 0.3:
            description = _damaged(rng, description)
    elif kind == "zip" and rng.random() < 0.6:
        weights = _with_program(weights, lambda program: _damaged(rng, program))
    elif kind in ("safetensors", "detector") and rng.random() < 0.6:
        weights = _with_header(weights, lambda header: _changed(rng, header))
    else:
        weights = _damaged(rng, weights)
    path = folder / ("a.safetensors" if kind in ("safetensors", "detector") else "a.pth")
    path.write_bytes(weights)
    path.with_suffix(".json").write_bytes(description)
    return path


def outcome(path: Path) -> str:
    """Load a file: "loaded", or "refused" in one line that names it.

    Raises:
        AssertionError: If the line is none, or what was loaded is not a working model.
    """
    try:
        with at_most(_MEMORY):
            checkpoint = open_checkpoint(path)
            if checkpoint.task == "detection":
                load_detector(checkpoint)
                return "loaded"
            model = model_from_checkpoint(checkpoint).eval()
            with torch.inference_mode():
                logits = model(torch.zeros(1, model.in_chans, 32, 32))
    except CheckpointError as error:
        message = str(error)
        if "\n" in message or not message.startswith(str(path.with_suffix(""))) or len(message) > 2000:
            raise AssertionError(f"not one line that names the file: {message!r}") from error
        return "refused"
    if logits.shape != (1, model.num_classes or model.num_features):
        raise AssertionError(f"logits of shape {tuple(logits.shape)}")
    return "loaded"


@cache
def _whole(kind: str) -> tuple[bytes, bytes]:
    """An undamaged file and its description."""
    torch.manual_seed(0)
    if kind == "detector":
        model: torch.nn.Module = MaskRCNN(MaskRCNNConfig(_CONFIG, ("cat", "dog"), 8, 8, 8))
    else:
        model = VMamba(_CONFIG)
    info: ModelInfo = info_of(model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if kind in ("safetensors", "detector"):
        return safetensors.torch.save(state), info.to_json().encode()
    content = {"model": state, "epoch": 3, "optimizer": torch.optim.SGD(model.parameters()).state_dict()}
    return saved(content, legacy=kind == "legacy"), info.to_json().encode()


def _damaged(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, bytes inserted, removed, repeated or overwritten, once or a few times."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        start = rng.randrange(len(damaged) + 1)
        length = rng.choice([1, 1, 1, 2, 4, 8, 100, 1000])
        what = rng.randrange(7)
        if what <= 1 and start < len(damaged):
            damaged[start] ^= 1 << rng.randrange(8)
        elif what == 2:
            damaged[start:start] = rng.randbytes(length)
        elif what == 3:
            del damaged[start : start + length]
        elif what == 4:
            damaged[start:start] = damaged[start : start + length]
        elif what == 5:
            damaged[start : start + length] = rng.choice([b"\0", b"\xff"]) * len(damaged[start : start + length])
        elif what == 6 and rng.random() < 0.3:
            del damaged[start:]
    return bytes(damaged)


def _changed(rng: random.Random, tree: Any) -> Any:
    """JSON with some of its values replaced, removed, renamed or nested."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        parent, key = None, None
        here = tree
        while isinstance(here, (dict, list)) and here and (parent is None or rng.random() < 0.8):
            parent, key = here, rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
            here = here[key]
        if parent is None:
            return deepcopy(rng.choice(_VALUES))
        what = rng.randrange(6)
        if what == 0:
            del parent[key]
        elif what == 1 and isinstance(parent, dict):
            parent[f"{key}{rng.choice(['s', ' ', chr(0)])}"] = parent.pop(key)
        elif what == 2:
            parent[key] = _nested(here, rng.choice([1, 3, 150]))
        else:
            parent[key] = deepcopy(rng.choice(_VALUES))
    return tree


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _with_program(archive: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A zip whose pickle is changed and whose checksums fit, as an attacker would make it."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return target.getvalue()


def _with_header(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """A safetensors file with another header, of the length that it says."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
