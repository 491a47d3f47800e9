"""Downloads: addresses, content, the disk, several at once."""

from __future__ import annotations

import errno
import io
import re
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest
import torch
from safetensors.torch import save as to_safetensors

from support.download_server import checkpoint, failure, left
from vmamba.checkpoints.download import download
from vmamba.errors import DownloadError

module = sys.modules[download.__module__]


def test_download(server, content, tmp_path):
    path = download(f"{server.url}/a.pth", directory=tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "a.pth"
    assert path.read_bytes() == content
    assert left(path.parent) == ["a.pth"]
    assert torch.load(path)["weight"].shape == (100_000,)


def test_default_directory_is_that_of_torch_hub(server, content, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert download(f"{server.url}/a.pth") == tmp_path / "checkpoints" / "a.pth"


def test_name_is_the_unquoted_last_segment(server, tmp_path):
    server.files["/x/my%20model.bin?download=true"] = b"content"
    path = download(f"{server.url}/x/my%20model.bin?download=true", directory=tmp_path)
    assert path == tmp_path / "my model.bin"


def test_name_cannot_leave_the_directory(server, tmp_path):
    server.files["/..%2F..%2Fa.bin"] = b"content"
    assert download(f"{server.url}/..%2F..%2Fa.bin", directory=tmp_path) == tmp_path / "a.bin"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "http://127.0.0.1/folder/",
        "http://127.0.0.1/a/..",
        "http://127.0.0.1/a%5C..%5Cb",
        "http://127.0.0.1/C%3Aa.pth",
        "http://[1/a.pth",
        "http:///a.pth",
        "file:///a.pth",
        "a.pth",
        "",
    ],
)
def test_addresses_that_name_no_file(url, tmp_path):
    assert re.search("last segment|not an http|check the address", failure(url, directory=tmp_path))
    assert left(tmp_path) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/a.pth", "http://127.0.0.1/a b.pth", "http://127.0.0.1/ä.pth"])
def test_malformed_address_is_tried_once(url, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 1000)
    assert "check the address" in failure(url, directory=tmp_path)


def test_cached_file_needs_no_server(server, content, tmp_path):
    path = download(f"{server.url}/a.pth", directory=tmp_path)
    server.shutdown()
    server.server_close()
    assert download(f"{server.url}/a.pth", directory=tmp_path) == path
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_file_that_is_there_is_refused_and_kept(server, content, tmp_path, name):
    (tmp_path / name).write_bytes(content[:1000])
    message = failure(f"{server.url}/{name}", directory=tmp_path)
    assert f"{tmp_path / name} is damaged" in message
    assert "remove it" in message
    assert left(tmp_path) == [name]
    assert server.requests == []


def test_redirect(server, content, tmp_path):
    assert download(f"{server.url}/moved/moved/a.pth", directory=tmp_path).read_bytes() == content


@pytest.mark.parametrize(
    "address", ["file:///etc/hosts", "ftp://127.0.0.1/a.pth", "data:,a", "gopher://127.0.0.1/a.pth"]
)
def test_redirect_to_another_scheme(server, tmp_path, address):
    server.redirects["/a.pth"] = address
    message = failure(f"{server.url}/a.pth", directory=tmp_path)
    assert "not followed" in message or "not allowed" in message
    assert left(tmp_path) == []


def test_redirect_out_of_an_encrypted_connection():
    def follow(old: str, new: str) -> Any:
        return module._Redirects().redirect_request(Request(old), io.BytesIO(), 302, "Found", {}, new)

    with pytest.raises(module._Refused, match="from https to http, which is not followed"):
        follow("https://localhost/a.pth", "http://localhost/a.pth")
    assert follow("http://localhost/a.pth", "https://localhost/a.pth").full_url == "https://localhost/a.pth"


def test_endless_redirect(server, tmp_path):
    assert "302" in failure(f"{server.url}{'/moved' * 50}/a.pth", directory=tmp_path)


# Content


def flipped(content: bytes) -> bytes:
    """The same with one bit of a tensor wrong."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("a.pth", lambda content: content[:-1000], "not a zip file"),
        ("a.pth", flipped, "checksum of its entry .*data/0 is wrong"),
        ("a.pth", lambda content: b"<html>log in</html>", "not a PyTorch checkpoint, it begins with b'<h'"),
        ("a.pth", lambda content: b"", "not a PyTorch checkpoint"),
        ("a.safetensors", lambda content: content[:-1], ""),
        ("a.safetensors", lambda content: content + b"\0", ""),
        ("a.safetensors", lambda content: b"<html>log in</html>", ""),
        ("a.safetensors", lambda content: b"", ""),
    ],
)
def test_damaged_content_is_removed(server, tmp_path, name, damage, reason):
    whole = checkpoint() if name == "a.pth" else to_safetensors({"weight": torch.ones(1000)})
    server.files[f"/{name}"] = damage(whole)
    message = failure(f"{server.url}/{name}", directory=tmp_path)
    assert re.search(f"what came is damaged and was removed: .*{reason}", message)
    assert f"put it at {tmp_path / name}" in message
    assert left(tmp_path) == []
    server.files[f"/{name}"] = whole
    assert download(f"{server.url}/{name}", directory=tmp_path).read_bytes() == whole
    assert left(tmp_path) == [name]


def test_damaged_zip_of_any_kind_is_one_error(server, content, tmp_path):
    generator = torch.Generator().manual_seed(0)
    start = content.rindex(b"PK\x01\x02", 0, -200) - 300  # the table at the end and what is before it
    for _ in range(50):
        damaged = bytearray(content)
        for position in torch.randint(start, len(content), (4,), generator=generator).tolist():
            damaged[position] ^= 255
        server.files["/a.pth"] = bytes(damaged)
        with suppress(DownloadError):
            path = download(f"{server.url}/a.pth", directory=tmp_path)
            with zipfile.ZipFile(path) as archive:  # the damage is between the entries, where nothing depends on it
                assert archive.testzip() is None
            path.unlink()
        assert left(tmp_path) == []


def test_checkpoint_of_the_old_format(server, tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    server.files["/a.pth"] = (tmp_path / "old").read_bytes()
    assert torch.load(download(f"{server.url}/a.pth", directory=tmp_path))["weight"].tolist() == [1, 1, 1]


def test_safetensors(server, tmp_path):
    server.files["/a.safetensors"] = to_safetensors({"weight": torch.ones(1000)})
    path = download(f"{server.url}/a.safetensors", directory=tmp_path)
    assert path.read_bytes() == server.files["/a.safetensors"]


# The disk


class FullDisk(io.BufferedWriter):
    """A file on a disk that has room for 64 kB more."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 65536:
            super().write(data[: max(65536 - self.tell(), 0)])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_full_disk(server, content, tmp_path, monkeypatch):
    path_open = Path.open

    def full(path, mode="r", **options):
        return FullDisk(io.FileIO(path, mode[0])) if path.suffix == ".partial" else path_open(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        message = failure(f"{server.url}/a.pth", directory=tmp_path)
    assert f"No space left on device in {tmp_path}; make room" in message
    assert f"the 65536 bytes in {tmp_path / 'a.pth.partial'} are kept" in message
    assert len(server.requests) == 1
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content
    assert server.requests[1:] == [("/a.pth", "bytes=65536-")]


def test_directory_that_cannot_be_made(server, content, tmp_path):
    (tmp_path / "file").touch()
    message = failure(f"{server.url}/a.pth", directory=tmp_path / "file" / "folder")
    assert "choose another folder" in message


# Several at once


def test_two_at_once_download_once(server, content, tmp_path):
    server.drops = [100_000]
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(download, f"{server.url}/a.pth", directory=tmp_path) for _ in range(4)]
        assert {result.result() for result in results} == {tmp_path / "a.pth"}
    assert (tmp_path / "a.pth").read_bytes() == content
    assert server.sent == len(content)
    assert left(tmp_path) == ["a.pth"]


def test_lock_of_a_process_that_died_is_free(server, content, tmp_path):
    (tmp_path / "a.pth.lock").touch()
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content


# The progress bar


@pytest.mark.parametrize("color", ["", "1"])
def test_nothing_is_printed_where_nobody_looks(server, content, tmp_path, capfd, monkeypatch, color):
    monkeypatch.setenv("FORCE_COLOR", color)
    download(f"{server.url}/a.pth", directory=tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wanted", [True, False])
def test_progress_bar_is_on_stderr(server, content, tmp_path, capfd, monkeypatch, wanted):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    server.files["/{a}[b].pth"] = content
    download(f"{server.url}/{{a}}[b].pth", directory=tmp_path, progress=wanted)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("{a}[b].pth" in err and "kB" in err) == wanted


def test_a_failed_download_leaves_no_lock(server, content, tmp_path):
    failure(f"{server.url}/none.pth", directory=tmp_path)
    assert left(tmp_path) == []
