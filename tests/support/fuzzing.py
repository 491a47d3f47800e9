"""Broken inputs, made from whole ones: each is a pure function of (seed, number)."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

#: Values that no schema expects, or expects elsewhere.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 1e30, 2**31, 2**53 + 1, 2**63, 2**70, -(2**63),
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "7", "nan",
    "x", "é\u202e\x1b[31m\n", "[red]", "../..",
    "a" * 5000,
    [], {}, [[]], [None], [0, 0, 0, 0], [[0, 0, 0, 0]], [1e9, 1e9, 1e9, 1e9], {"size": [10**6, 10**6], "counts": [1]},
    {"size": [1, 1], "counts": "0"}, {"counts": [2**40]}, {"a": {"a": {"a": []}}}, [[1, 2, 3, 4, 5, 6]], ["x"] * 4,
)  # fmt: skip


def mutate_value(rng: random.Random, value: Any) -> Any:
    """A nest of dictionaries and lists with one to three entries changed, removed, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holders = [(holder, key) for holder in _containers(value) for key in _keys(holder)]
        if not holders:
            return rng.choice(ODD_VALUES)
        holder, key = rng.choice(holders)
        action = rng.randrange(8)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif action == 2:
            holder[key] = [holder[key]]
        elif action == 3 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] * rng.choice((-1, 0, 0.5, 1000, 1e12))
        elif action == 4 and isinstance(holder[key], str):
            holder[key] = mutate_bytes(rng, holder[key].encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        elif action == 5:
            other, name = rng.choice(holders)
            holder[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else other[name : name + 1])
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return value


def mutate_json(rng: random.Random, value: Any) -> bytes:
    """A nest as JSON, broken as a nest, or as text."""
    if rng.random() < 0.85:
        return json.dumps(mutate_value(rng, value)).encode()
    if rng.random() < 0.1:
        return b'{"images":' + b"[" * rng.choice((100, 100_000))
    return mutate_bytes(rng, json.dumps(value).encode())


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bytes with bits flipped, parts overwritten, removed, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not data:
            return bytes(data)
        # The start of a file says what it is and how large; it is hit as often as all the rest.
        start = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))
        length = min(rng.choice((1, 1, 2, 4, 16, 200)), len(data) - start)
        action = rng.randrange(6)
        if action == 0:
            data[start] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[start : start + length] = rng.randbytes(length)
        elif action == 2:
            data[start : start + length] = rng.choice((b"\x00", b"\xff", b"\x7f")) * length
        elif action == 3:
            del data[start : start + length]
        elif action == 4:
            data[start:start] = data[start : start + length]
        elif rng.random() < 0.3:
            del data[start:]
    return bytes(data)


def _containers(value: Any) -> list[Any]:
    """Every dictionary and list in a nest."""
    pending, result = [value], []
    while pending:
        item = pending.pop()
        if isinstance(item, (dict, list)):
            result.append(item)
            pending += item.values() if isinstance(item, dict) else item
    return result


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))
