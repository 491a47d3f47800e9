"""Argument checks shared by the operators: one clear line that says what was expected and what came."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def check_operands(
    op: str, operands: Mapping[str, tuple[Tensor | None, str]], sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Match every tensor with its shape pattern and check that they agree.

    Args:
        op: Name of the operator, for the message.
        operands: name → (tensor or None, dimension names separated by spaces, such as ``"B H W D"``). A name that
            comes twice must have one size; a sum such as ``"R+2N"`` is compared once its parts are known.
        sizes: Dimensions known beforehand.

    Returns:
        Size of every named dimension.

    Raises:
        TypeError: For something that is not a floating-point tensor.
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
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating point, got {tensor.dtype}")
        if device is None:
            device = tensor.device
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, the first operand on {device}")
        if tensor.ndim != len(dims):
            raise ValueError(
                f"{op}: {name} must have {len(dims)} dimensions ({', '.join(dims)}), got shape {tuple(tensor.shape)}"
            )
        for dim, size in zip(dims, tensor.shape, strict=True):
            expected = _size_of(dim, known)
            if expected is None and dim.isalpha():
                known[dim] = expected = size
            if size < 1 or (expected is not None and expected != size):
                raise ValueError(
                    f"{op}: {name} must have shape ({', '.join(dims)})"
                    + (f" with {dim} = {expected}" if size >= 1 else f" with {dim} ≥ 1")
                    + f", got {tuple(tensor.shape)}"
                )
    return known


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
