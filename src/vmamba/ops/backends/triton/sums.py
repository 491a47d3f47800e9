"""Sums of what several programs found of the same gradient, in a fixed order, rounded once, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmamba.ops.backends.triton.launch import launch

BLOCK = 2048


@triton.jit(do_not_specialize=["groups"])
def _sum_parts(parts, total, groups, COUNT: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """Total of COUNT parts of so many groups of VECTOR values.

    Bytes of a value: ``4 COUNT`` in, those of its storage out.
    """
    first, size = tl.program_id(0).to(tl.int64) * BLOCK, groups.to(tl.int64) * VECTOR
    place = tl.arange(0, BLOCK)
    mask = place < tl.minimum(size - first, BLOCK).to(tl.int32) // VECTOR * VECTOR
    value = tl.load(parts + first + place, mask=mask, other=0.0)
    for part in tl.static_range(1, COUNT):
        value += tl.load(parts + (first + part * size) + place, mask=mask, other=0.0)
    tl.store(total + first + place, value.to(total.dtype.element_ty), mask=mask)


def sum_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over the first dimension of float32 parts (P, …) in `dtype`; of a single one it is that, as it is."""
    if len(parts) == 1:
        return parts[0]
    total = torch.empty_like(parts[0], dtype=dtype)
    vector = 4 if total.numel() % 4 == 0 else 1
    operands = (parts, total, total.numel() // vector)
    programs = triton.cdiv(total.numel(), BLOCK)
    launch(_sum_parts, (programs,), operands, 4, COUNT=len(parts), VECTOR=vector, BLOCK=BLOCK)
    return total
