"""Files of torch.save written instruction by instruction, to say what no library would."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def call(name: str, *arguments: bytes) -> bytes:
    """Function and arguments: ``module.name(…)``."""
    module, _, function = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + function.encode() + b"\n(" + b"".join(arguments) + b"tR"


def tensor(size: tuple[int, ...], stride: tuple[int, ...], count: int, offset: int = 0) -> bytes:
    """A float32 tensor that views ``count`` elements of the storage "0"."""
    kind = b"ctorch\nFloatStorage\n"
    storage = b"(" + text("storage") + kind + text("0") + text("cpu") + integer(count) + b"tQ"
    shape, steps = (b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (size, stride))
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage, integer(offset), shape, steps, b"\x89", hooks)


def mapping(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


def zipped(path: Path, program: bytes, storage: bytes = b"") -> Path:
    """A file of the format since PyTorch 1.6 whose pickle is `program`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", "3\n")
    return path


def legacy(path: Path, program: bytes, storage: bytes = b"") -> Path:
    """The same in the format before."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    parts = [pickle.dumps(part, protocol=2) for part in head]
    parts += [b"\x80\x02" + program + b".", pickle.dumps(["0"] if storage else [], protocol=2)]
    path.write_bytes(b"".join(parts) + (struct.pack("<q", len(storage) // 4) + storage if storage else b""))
    return path


def saved(content: Any, *, legacy: bool = False) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def with_right_checksums(archive: bytes) -> bytes:
    """A zip archive whose checksums fit its damaged content, as an attacker would write it."""
    source, target = io.BytesIO(archive), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            source.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", source.read(4))
            source.seek(name + extra, io.SEEK_CUR)
            content = source.read(info.file_size)
            new.writestr(info.filename, content)
    return target.getvalue()
