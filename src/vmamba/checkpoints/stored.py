"""Tensors that are still in a file: shapes are known at once, values are read when they are asked for.

So weights are compared with a model before any memory is taken for them, and of a training checkpoint only what is used
is read. Every size that a file claims is compared with the size of the file first.
"""

from __future__ import annotations

import math
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vmamba.errors import CheckpointError

#: Dimensions of a tensor; PyTorch itself stops at 64.
_MAX_NDIM = 16


class SourceFile:
    """A file that stays open as long as there are tensors to be read from it.

    Args:
        path: The file.

    Attributes:
        size: Bytes in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self.size = self._file.seek(0, 2)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes, at most those that there are."""
        self._file.seek(min(offset, self.size))
        return self._file.read(min(length, self.size))

    def read_into(self, offset: int, target: Tensor) -> None:
        """Fill a uint8 tensor.

        Raises:
            CheckpointError: If the file ends before.
        """
        view = _bytes(target)
        self._file.seek(offset)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise CheckpointError(f"{self.path}: damaged, or not a checkpoint (it ends within a tensor)")
            view = view[count:]


class Storage:
    """Bytes in a file that one or several tensors lie in.

    Args:
        file: The file.
        offset: Of the first byte.
        nbytes: How many.
        crc: Their CRC-32, where the format has one.

    Raises:
        ValueError: If they are not within the file.
    """

    def __init__(self, file: SourceFile, offset: int, nbytes: int, crc: int | None = None) -> None:
        if not type(offset) is type(nbytes) is int or not 0 <= offset <= offset + nbytes <= file.size:
            raise ValueError(f"{nbytes} bytes at {offset} do not lie in a file of {file.size}")
        self.file, self.offset, self.nbytes, self.crc = file, offset, nbytes, crc
        self._loaded: weakref.ref[Tensor] | None = None

    def load(self) -> Tensor:
        """The bytes, uint8 (nbytes,); the same memory as long as somebody holds it.

        Raises:
            CheckpointError: If they are damaged.
        """
        values = self._loaded() if self._loaded is not None else None
        if values is None:
            values = torch.empty(self.nbytes, dtype=torch.uint8)
            if self.nbytes:
                self.file.read_into(self.offset, values)
            if self.crc is not None and zlib.crc32(_bytes(values)) != self.crc:
                raise CheckpointError(f"{self.file.path}: damaged, or not a checkpoint (a checksum in it is wrong)")
            self._loaded = weakref.ref(values)
        return values


class StoredTensor:
    """A tensor in a file.

    Args:
        storage: Where its values are.
        dtype: Of the values.
        size: Its shape.
        stride: In elements; None for contiguous.
        offset: Of the first element, in elements.

    Attributes:
        shape: Its shape, perhaps after `reshape`.

    Raises:
        ValueError: If it does not lie within its storage, or is larger than that.
    """

    def __init__(
        self, storage: Storage, dtype: torch.dtype, size: Sequence[int], stride: Sequence[int] | None, offset: int = 0
    ) -> None:
        self.shape, self.dtype, self._storage = _integers(size), dtype, storage
        count = math.prod(self.shape)
        if stride is None:
            stride = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        steps, (start,) = _integers(stride), _integers([offset])
        end = start + 1 + sum((n - 1) * step for n, step in zip(self.shape, steps, strict=True))
        if count and max(count, end) > storage.nbytes // dtype.itemsize:
            raise ValueError(f"a tensor of shape {self.shape} does not fit into {storage.nbytes} bytes")
        self._geometry = (self.shape, steps, start)

    def reshape(self, shape: Sequence[int]) -> StoredTensor:
        """The same values in another shape."""
        other: StoredTensor = object.__new__(StoredTensor)
        other.__dict__.update(self.__dict__, shape=tuple(shape))
        return other

    def load(self) -> Tensor:
        """The values.

        Raises:
            CheckpointError: If they are damaged.
        """
        values = self._storage.load()
        whole = len(values) // self.dtype.itemsize * self.dtype.itemsize
        return values[:whole].view(self.dtype).as_strided(*self._geometry).reshape(self.shape)


def _bytes(values: Tensor) -> memoryview:
    return memoryview(cast(Any, values.numpy()))


def _integers(values: Sequence[int]) -> tuple[int, ...]:
    if len(values) > _MAX_NDIM or not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
        raise ValueError("a tensor of impossible shape, stride or offset")
    return tuple(values)


#: What adapters translate: a `torch.Tensor`, or one that is still in a file.
Entry = TypeVar("Entry", Tensor, StoredTensor)


def load(entry: Any) -> Tensor:
    """The values of an entry."""
    return entry.load() if isinstance(entry, StoredTensor) else entry
