"""Files are read as torch.load reads them; what is wrong with one ends in a line, and takes no memory."""

from __future__ import annotations

import argparse
import collections
import errno
import json
import os
import pathlib
import pickle
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from support import pickles
from support.memory import at_most
from vmamba.checkpoints.pickles import MAX_INSTRUCTIONS
from vmamba.checkpoints.reading import read_checkpoint, read_file
from vmamba.checkpoints.stored import StoredTensor
from vmamba.errors import CheckpointError

ONE = struct.pack("<f", 1.0)


def refused(path: Path, message: str) -> None:
    """Refused in one line that names the file, within a hundred megabytes."""
    with at_most(100), pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def loaded(value: Any) -> Any:
    """With the tensors in place of where they are."""
    if isinstance(value, StoredTensor):
        return value.load()
    if isinstance(value, dict):
        return {key: loaded(item) for key, item in value.items()}
    return type(value)(map(loaded, value)) if isinstance(value, (list, tuple)) else value


def assert_same(one: Any, other: Any) -> None:
    if isinstance(other, Tensor):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other.detach())
    elif isinstance(other, dict):
        assert list(one) == list(other)
        for key in other:
            assert_same(one[key], other[key])
    elif isinstance(other, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_same_as_torch_load(tmp_path: Path, legacy: bool, protocol: int) -> None:
    base = torch.arange(24.0)
    content = {
        "shared": {"a": base[:12].view(3, 4), "b": base[12:].view(4, 3).t(), "whole": base},
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "kinds": [torch.ones(3, dtype=d) for d in (torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.int64)],
        "ordered": collections.OrderedDict(x=1, y=(2, None, True, "text", 1 << 70, -1.5)),
        3: torch.Size([1, 2]),
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    truth = torch.load(tmp_path / "a.pth", weights_only=False)
    assert_same(loaded(read_file(tmp_path / "a.pth")), truth)


def test_optimizers_and_objects_beside_the_weights(tmp_path: Path) -> None:
    """No class of theirs is looked up; the weights are read all the same."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("runs")),
        "counter": collections.Counter("abca"),
        "factory": collections.defaultdict(list, a=[1]),
        "numbers": torch.tensor([1.5]).numpy(),
        "tensor_with_attribute": _with_attribute(torch.ones(2)),
    }
    torch.save(content, tmp_path / "a.pth")
    assert_same(read_checkpoint(tmp_path / "a.pth"), dict(model.state_dict()))
    whole = loaded(read_file(tmp_path / "a.pth"))
    assert_same(whole["optimizer"], optimizer.state_dict())
    assert torch.equal(whole["tensor_with_attribute"], torch.ones(2))


def _with_attribute(tensor: Tensor) -> Tensor:
    tensor.note = "attribute"  # type: ignore[attr-defined]
    return tensor


def test_only_the_weights_asked_for_are_read(tmp_path: Path) -> None:
    """The average is damaged on the disk; the model beside it is not affected."""
    path = tmp_path / "a.pth"
    marked = torch.full((1000,), 3.25)
    torch.save({"model": {"w": torch.ones(1000)}, "model_ema": {"w": marked}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(marked.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert torch.equal(read_checkpoint(path)["w"], torch.ones(1000))
    with pytest.raises(CheckpointError, match=r"a\.pth: damaged.*checksum"):
        read_checkpoint(path, "model_ema")


def test_files_are_closed_and_may_be_replaced(tmp_path: Path) -> None:
    """What has been opened stays what it was."""
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.ones(4)}, path)
    entry = read_file(path)["w"]
    safetensors.torch.save_file({"w": torch.zeros(4)}, tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").replace(path)
    assert torch.equal(entry.load(), torch.ones(4))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    del entry
    assert not before or len(os.listdir("/proc/self/fd")) == before - 1


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".safetensors"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, suffix: str) -> None:
    tensors = {
        "a": torch.randn(2, 3),
        "b": torch.ones(4, dtype=torch.bfloat16),
        "c": torch.tensor(7),
        "d": torch.empty(0),
    }
    path = tmp_path / f"a{suffix}"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    got = read_checkpoint(path)
    assert got.keys() == tensors.keys()
    assert all(got[n].dtype == t.dtype and torch.equal(got[n], t) for n, t in tensors.items())


# Pickles that ask for too much


@pytest.mark.parametrize("write", [pickles.zipped, pickles.legacy])
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            pickles.call("builtins.bytearray", pickles.integer(1 << 50)),
            "refused, nothing in it was run: it asks for 11258",
        ),
        (pickles.call("__builtin__.bytes", pickles.integer(10 << 30)), "refused, .* asks for 10737418240 bytes"),
        (pickles.call("builtins.eval", pickles.text("1")), r"it asks to load 'builtins\.eval'"),
        (pickles.call("os.system", pickles.text("true")), r"it asks to load 'os\.system'"),
        (pickles.call("subprocess.Popen", pickles.text("true")), r"it asks to load 'subprocess\.Popen'"),
        (pickles.text("os") + pickles.text("system") + b"\x93" + b")R", r"it asks to load 'os\.system'"),
        (b"h\xff", "damaged"),  # an entry of the memo that is not there
        (b"j\xff\xff\xff\x7f", "damaged"),
        (b"}r\xff\xff\xff\xff", "has no weights"),  # one that would take 64 GB in a table
        (b"(" * 1000, "damaged"),
        (b"t", "damaged"),
        (b"u", "damaged"),
        (b"R", "damaged"),
        (b"}(" + pickles.text("a") + b"u", "damaged"),  # a key without a value
        (b"\x8e" + struct.pack("<Q", 10 << 30) + b"abc", "damaged"),  # bytes of a length that is not there
        (b"X\xff\xff\xff\xffabc", "damaged"),
        (b"\x8b\xff\xff\xff\x7f\x01", "damaged"),
        (b")" + b"\x85" * 300_000, "holds a tuple"),  # as deep as this
        (b"]" * 2 + b"ea", "damaged"),
        (b"(" + pickles.text("os") + b"isystem\n", "damaged"),
    ],
)
def test_hostile_pickles(tmp_path: Path, write: Callable[..., Path], program: bytes, message: str) -> None:
    refused(write(tmp_path / "a.pth", program), message)


def test_a_call_that_no_weights_consist_of_is_not_made(tmp_path: Path) -> None:
    """``torch.Tensor(1 << 40)`` would take four terabytes."""
    big = pickles.call("torch.Tensor", pickles.integer(1 << 40))
    path = pickles.zipped(tmp_path / "a.pth", pickles.mapping(w=pickles.tensor((1,), (1,), 1), x=big), ONE)
    with at_most(100):
        assert read_checkpoint(path) == {"w": torch.ones(1)}


@pytest.mark.parametrize("write", [pickles.zipped, pickles.legacy])
@pytest.mark.parametrize(
    "geometry",
    [
        ((1 << 40,), (1,), 1),  # beyond its storage
        ((1 << 40,), (0,), 1),  # one element, repeated
        ((1 << 20, 1 << 20), (0, 0), 1),
        ((1,), (1,), 1 << 40),  # a storage beyond the file
        ((1,), (1,), 2),
        ((1,), (1,), 1, 5),
        ((-1,), (1,), 1),
        ((1,), (-1,), 1),
        ((1, 1), (1,), 1),
        ((1 << 70,), (1,), 1),
        ((1,) * 100, (1,) * 100, 1),
        ((1,), (1,), -1),
    ],
)
def test_tensors_of_impossible_geometry(tmp_path: Path, write: Callable[..., Path], geometry: tuple[Any, ...]) -> None:
    refused(
        write(tmp_path / "a.pth", pickles.mapping(w=pickles.tensor(*geometry)), ONE), "damaged, or not a checkpoint"
    )


def test_endless_programs_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_INSTRUCTIONS > 1_000_000
    monkeypatch.setattr("vmamba.checkpoints.pickles.MAX_INSTRUCTIONS", 1000)
    refused(pickles.zipped(tmp_path / "a.pth", b"N0" * 600), "more than 1000 instructions")


def test_compressed_records_are_not_unpacked(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (200 << 20))
    refused(tmp_path / "a.pth", "damaged or compressed|do not lie in a file")


def test_whole_models_are_not_made(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", r"holds a torch\.nn\.modules\.linear\.Linear, not a mapping.*state_dict")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"w": 1}))
    refused(tmp_path / "b.pth", "damaged, or not a checkpoint")


# Damage


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_flipped_bits(tmp_path: Path, kind: str) -> None:
    """One line or the right weights; of a zip never other weights, since it has checksums."""
    weights = {f"layer{i}.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    whole = (
        safetensors.torch.save(weights) if kind == "safetensors" else pickles.saved(weights, legacy=kind == "legacy")
    )
    path, generator = tmp_path / f"a.{'safetensors' if kind == 'safetensors' else 'pth'}", random.Random(0)
    outcomes: collections.Counter[str] = collections.Counter()
    for position in sorted(generator.sample(range(len(whole)), 150)):
        content = bytearray(whole)
        content[position] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        try:
            with at_most(100):
                got = read_checkpoint(path)
        except CheckpointError as error:
            outcomes["refused" if re.fullmatch(rf"{re.escape(str(path))}: .*", str(error)) else "said badly"] += 1
        else:
            outcomes["read"] += 1
            if kind == "zip":
                assert got.keys() == weights.keys()
                assert all(torch.equal(tensor, weights[name]) for name, tensor in got.items()), position
    assert outcomes["refused"] >= 20, outcomes
    assert not outcomes["said badly"]


@pytest.mark.parametrize("position", ["first", "last"])
def test_every_byte_of_a_zipped_tensor_is_checked(tmp_path: Path, position: str) -> None:
    tensor = torch.full((100_000,), 3.25)
    content = bytearray(pickles.saved({"w": tensor}))
    start = content.index(tensor.numpy().tobytes())
    content[start if position == "first" else start + tensor.nbytes - 1] ^= 128
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", "damaged, or not a checkpoint .*checksum")


def header(path: Path, content: object, data: bytes = b"", length: int | None = None) -> Path:
    encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, "do not lie in a file"),
        ({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, "does not fit into 4 bytes"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "damaged"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "damaged"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]}}, "damaged"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "impossible shape"),
        ({"w": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, "damaged"),
        ({"w": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, "damaged"),
        ({"w": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, "damaged"),
        ({"w": {"dtype": "F32"}}, "damaged"),
        ({"w": 3}, "damaged"),
        ({"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, "where its header tells of"),
        ([1], "not an object"),
        (b"{" * 100_000, "damaged"),
        (b"\xff\xfe{}", "damaged"),
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, content: object, message: str) -> None:
    refused(header(tmp_path / "a.safetensors", content, ONE), message)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_lengths_of_headers(tmp_path: Path, length: int) -> None:
    refused(header(tmp_path / "a.safetensors", {}, b"", length), "damaged")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "described.safetensors"])
def test_a_sparse_file_of_terabytes(tmp_path: Path, name: str) -> None:
    """Nothing is read or mapped that no model has a place for; reading weights alone is bounded by the header."""
    path = tmp_path / name
    if name.startswith("described"):
        header(path, {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    try:
        path.touch()
        os.truncate(path, 8 << 40)
    except OSError:
        pytest.skip("no sparse files of this size here")
    refused(path, "damaged, or not a checkpoint")


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    os.mkfifo(tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "a pipe, socket or device, not a checkpoint")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", denied)  # root may read everything
    refused(tmp_path / "a.pth", "cannot be read: Permission denied")
