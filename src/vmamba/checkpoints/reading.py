"""Read weights from files: safetensors, and both formats of ``torch.save``, running nothing that is pickled."""

from __future__ import annotations

import io
import json
import mmap
import re
import sys
import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vmamba.checkpoints.pickles import Name, Refused, Unread, read_pickle
from vmamba.checkpoints.stored import SourceFile, Storage, StoredTensor, load
from vmamba.errors import CheckpointError, OptionError, system_reason
from vmamba.terminal import printable

Weights = Literal["auto", "model", "model_ema"]
StateDict = dict[str, Tensor]
#: Names and tensors, in memory or still in a file.
Entries = dict[str, Any]

#: Where the weights lie in a training checkpoint: the authors' names and ours, then OpenMMLab's, timm's, Lightning's.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "auto": ("model", "state_dict", "model_ema", "state_dict_ema"),
    "model": ("model", "state_dict"),
    "model_ema": ("model_ema", "state_dict_ema"),
}
#: Limit of a safetensors header, as in the library.
_MAX_HEADER = 100_000_000
_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_checkpoint(source: str | Path | Mapping[str, Any], weights: Weights = "auto") -> StateDict:
    """The weights in a file or mapping, by the names they have there.

    Nothing that is pickled in a file is run, or even looked up: containers and tensors are recognised, objects beside
    them are left out.

    Args:
        source: Path of a ``.safetensors`` file or of one written by ``torch.save``, or its content.
        weights: Which weights of a training checkpoint: ``"model"``, ``"model_ema"`` (their moving average), or
            ``"auto"``: the model's, as the authors' loaders do, or the average where there is nothing else.

    Raises:
        CheckpointError: If there is no such file, it is damaged, it is refused, or it has no such weights.
        OptionError: For another value of `weights`.
    """
    return {name: load(entry) for name, entry in read_entries(source, weights).items()}


def read_entries(source: str | Path | Mapping[str, Any], weights: Weights = "auto") -> Entries:
    """As `read_checkpoint`, the tensors of a file being `StoredTensor`: their values are not read yet."""
    content = source if isinstance(source, Mapping) else read_file(Path(source))
    return select_weights(content, weights, label_of(source))


def select_weights(content: Mapping[str, Any], weights: Weights, label: str) -> Entries:
    """The section of a checkpoint's content that holds the weights asked for.

    Raises:
        CheckpointError: If there is none.
        OptionError: For another value of `weights`.
    """
    if weights not in _SECTIONS:
        raise OptionError(f"weights must be one of {', '.join(_SECTIONS)}, got {weights!r}")
    for section in _SECTIONS[weights]:
        if isinstance(content.get(section), Mapping):
            content = content[section]
            break
    else:
        if weights == "model_ema" or not any(isinstance(value, (Tensor, StoredTensor)) for value in content.values()):
            sections = ", ".join(map(str, list(content)[:8])) or "nothing"
            wanted = "weights" if weights == "auto" else f"{weights!r} weights"
            raise CheckpointError(f"{label}: has no {wanted} (found: {sections})")
    entries = {str(name): value for name, value in content.items() if isinstance(value, (Tensor, StoredTensor))}
    if not entries:
        raise CheckpointError(f"{label}: holds no tensors")
    return entries


def label_of(source: object) -> str:
    return "the state dict" if isinstance(source, Mapping) else str(source)


def read_file(path: Path) -> Mapping[str, Any]:
    """Everything in a checkpoint, its tensors being `StoredTensor`.

    Raises:
        CheckpointError: If there is no such file, it is damaged or refused, or it is no mapping.
    """
    if not path.is_file():
        what = "no such file; check the spelling and the current folder"
        if path.exists():
            what = f"a {'folder' if path.is_dir() else 'pipe, socket or device'}, not a checkpoint"
        raise CheckpointError(f"{path}: {what}")
    try:
        file = SourceFile(path)
        start = file.read(0, 9)
        if not start:
            raise CheckpointError(f"{path}: the file is empty")
        if start[8:] == b"{" or path.suffix == ".safetensors":
            content = read_safetensors(file)
        else:
            content = _read_zip(file) if start[:4] == b"PK\3\4" else _read_legacy(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {system_reason(error)}") from None
    except Refused as error:
        raise CheckpointError(f"{path}: refused, nothing in it was run: {_one_line(error)}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({_one_line(error)})") from None
    if isinstance(content, Unread) and not content:
        raise CheckpointError(f"{path}: holds a {content.name}, not a mapping of weights; save its state_dict()")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a mapping of weights")
    return content


def read_safetensors(file: SourceFile) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by the format's definition: the library maps a file before it compares sizes.

    Raises:
        ValueError: If the header does not fit the file.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    if not 2 <= length <= min(file.size - 8, _MAX_HEADER):
        raise ValueError("its header is longer than the file" if length else "it has no header")
    header = json.loads(file.read(8, length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    header.pop("__metadata__", None)
    start, tensors, end = 8 + length, {}, 0
    for name, entry in header.items():
        try:
            dtype, shape, (first, last) = _SAFETENSORS_DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            tensors[name] = StoredTensor(Storage(file, start + first, last - first), dtype, shape, None)
            end = max(end, start + last)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"in its header, {name[:80]!r}: {error}") from None
    if tensors and end != file.size:
        raise ValueError(f"{file.size} bytes, where its header tells of {end}")
    return tensors


def _read_zip(file: SourceFile) -> Any:
    """The format since PyTorch 1.6: a zip archive with a pickle and a record for each storage, not compressed."""
    records = _zip_records(file.path)
    pickles = [name for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise ValueError("a zip archive, but not one of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    storages: dict[str, Storage] = {}

    def record(name: str) -> Storage:
        if name not in records:
            raise ValueError(f"it lacks {name[:80]!r}")
        if name not in storages:
            info = records[name]
            header = file.read(info.header_offset, 30)
            if header[:4] != b"PK\3\4" or len(header) != 30 or info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its entry {name[:80]!r} is damaged or compressed")
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            storages[name] = Storage(file, info.header_offset + 30 + lengths, info.file_size, info.CRC)
        return storages[name]

    def find_storage(identity: Sequence[Any]) -> tuple[Storage, torch.dtype]:
        _, kind, key, _, count = identity[:5]
        dtype, storage = _storage_dtype(kind), record(f"{root}data/{key}")
        if storage.nbytes != count * dtype.itemsize:
            raise ValueError(f"a storage of {storage.nbytes} bytes where {count} elements should be")
        return storage, dtype

    order = f"{root}byteorder"
    if order in records and bytes(record(order).load().tolist()) != sys.byteorder.encode():
        raise ValueError("written on a machine of another byte order")
    return read_pickle(io.BytesIO(record(pickles[0]).load().numpy().tobytes()), find_storage)


def _zip_records(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename: info for info in archive.infolist()}
    except Exception as error:  # it raises nearly anything on a broken archive
        raise ValueError(_one_line(error)) from None


def _read_legacy(file: SourceFile) -> Any:
    """The format before PyTorch 1.6: pickles one after another, then the storages. It has no checksums."""
    waiting: dict[str, tuple[Storage, torch.dtype]] = {}

    def find_storage(identity: Sequence[Any]) -> tuple[Storage, torch.dtype]:
        _, kind, key, _, count, *view = identity
        if any(part is not None for part in view) or not isinstance(key, str) or type(count) is not int:
            raise ValueError("a storage that is not known")
        if key not in waiting:  # its place follows from the sizes of those before it, below
            dtype = _storage_dtype(kind)
            waiting[key] = Storage(file, 0, count * dtype.itemsize), dtype
        return waiting[key]

    start = file.read(0, 8)
    if start[:1] != b"\x80":
        raise ValueError(f"it begins with {start!r}")
    with file.path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if read_pickle(mapped, find_storage) != _LEGACY_MAGIC:
            raise ValueError("a pickle, but not one of torch.save")
        if read_pickle(mapped, find_storage) != _LEGACY_PROTOCOL:
            raise ValueError("another version of the format")
        system = read_pickle(mapped, find_storage)
        if isinstance(system, dict) and system.get("little_endian") is not (sys.byteorder == "little"):
            raise ValueError("written on a machine of another byte order")
        content, keys = read_pickle(mapped, find_storage), read_pickle(mapped, find_storage)
        position = mapped.tell()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(waiting):
        raise ValueError("its list of storages does not fit its tensors")
    for key in keys:
        storage, dtype = waiting[key]
        count = int.from_bytes(file.read(position, 8), "little")
        if count * dtype.itemsize != storage.nbytes or position + 8 + storage.nbytes > file.size:
            raise ValueError(f"{count} elements where {storage.nbytes // dtype.itemsize} should be")
        storage.offset = position + 8
        position += 8 + storage.nbytes
    return content


def _storage_dtype(kind: object) -> torch.dtype:
    name = kind.name.rpartition(".")[2] if isinstance(kind, Name) else ""
    if name not in _STORAGE_DTYPES:
        raise ValueError(f"a storage of unknown kind {name[:40]!r}")
    return _STORAGE_DTYPES[name]


def _one_line(error: Exception) -> str:
    return textwrap.shorten(printable(error), 200, placeholder=" …") or type(error).__name__
