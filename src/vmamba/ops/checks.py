"""Argument checks shared by the operators: one clear line that says what was expected and what was given.

Operators check their operands where they run and where they are traced (in their fake), so that no backend ever sees
unchecked shapes: not from compiled code, not from an exported program, not from ``torch.ops.vmamba``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vmamba.ops.private_torch import is_known

#: What operands may be stored as. Eight-bit and integer types have no meaning here.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_operands(
    op: str, operands: Mapping[str, tuple[Any, str]], sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Match every tensor with its shape pattern and check that they agree.

    Args:
        op: Name of the operator, for the message.
        operands: name → (tensor or None, dimension names separated by spaces, such as ``"B H W D"``). A name that
            comes twice must have one size; a sum such as ``"R+2N"`` is compared once its parts are known. Only ``B``,
            the batch, may be empty.
        sizes: Dimensions known beforehand.

    Returns:
        Size of every named dimension.

    Raises:
        TypeError: For something that is not a tensor of one of :data:`DTYPES`.
        ValueError: For a wrong rank, a wrong size, an empty dimension, or tensors on different devices.
    """
    known = dict(sizes or {})
    device = None
    for name, (tensor, pattern) in operands.items():
        if tensor is None:
            continue
        dims = pattern.split()
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor of shape ({', '.join(dims)}), got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{op}: {name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
        if device is None:
            device = tensor.device
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, the first operand on {device}")
        if tensor.ndim != len(dims):
            raise ValueError(
                f"{op}: {name} must have {len(dims)} dimensions ({', '.join(dims)}), got shape {tuple(tensor.shape)}"
            )
        for dim, size in zip(dims, tensor.shape, strict=True):
            expected = known[dim] if dim in known else _size_of(dim, known)
            if expected is None:
                known[dim] = size
                if dim != "B" and is_known(size < 1):
                    raise _misfit(op, name, tensor, dims, f"{dim} ≥ 1")
            elif is_known(size != expected):
                raise _misfit(op, name, tensor, dims, f"{dim} = {expected}")
    return known


def _misfit(op: str, name: str, tensor: Tensor, dims: list[str], condition: str) -> ValueError:
    return ValueError(f"{op}: {name} must have shape ({', '.join(dims)}) with {condition}, got {tuple(tensor.shape)}")


def check_groups(op: str, name: str, groups: int, channels: int) -> None:
    """Check that the groups of B or C divide the channels.

    Raises:
        ValueError: If they do not.
    """
    if is_known(channels % groups != 0):
        raise ValueError(f"{op}: {name} has {groups} groups, which do not divide {channels} channels")


def _size_of(dim: str, known: Mapping[str, int]) -> int | None:
    """Size of ``"D"``, ``"4"`` or ``"R+2N"``; None while one of its parts is unknown."""
    total = 0
    for term in dim.split("+"):
        factor, name = (2, term[1:]) if term.startswith("2") and len(term) > 1 else (1, term)
        size = int(name) if name.isdigit() else known.get(name)
        if size is None:
            return None
        total += factor * size
    return total
