"""Downloads from a server on the loopback interface that behaves as badly as the real ones do."""

from __future__ import annotations

import errno
import io
import re
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request

import pytest
import torch
from safetensors.torch import save as to_safetensors

from vmamba.checkpoints.download import download
from vmamba.errors import DownloadError

module = sys.modules[download.__module__]


def checkpoint(seed: int = 0) -> bytes:
    """A file of some 400 kB as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.rand(100_000, generator=torch.Generator().manual_seed(seed))}, buffer)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `files`, badly if told so, and keeps a record of the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range header
        self.sent = 0  # bytes of content
        self.failures: list[int] = []  # status codes to answer first, one per request
        self.drops: list[int] = []  # after how many bytes to drop the connection, one per request
        self.stall = 0.0  # seconds to stay silent before the connection is closed
        self.ranges = True
        self.if_range = True
        self.validator = "ETag"
        self.length = True

    def version(self, path: str) -> str:
        """ETag or Last-Modified of a file: differs where the content does."""
        key = hash(self.files[path]) % 10**6
        return {"ETag": f'"{key}"', "Last-Modified": f"date {key}", "weak": f'W/"{key}"'}.get(self.validator, "")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, path, wanted = self.server, self.path, self.headers["Range"]
        server.requests.append((path, wanted))
        if server.failures:
            return self.send_error(server.failures.pop(0))
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[path])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if path not in server.files:
            return self.send_error(404)
        content, first = server.files[path], 0
        unchanged = not server.if_range or self.headers["If-Range"] == server.version(path)
        if wanted and server.ranges and unchanged:
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(content) - first))
        if server.validator:
            self.send_header("ETag" if server.validator == "weak" else server.validator, server.version(path))
        self.end_headers()
        body = content[first:]
        if server.drops:
            body = body[: server.drops.pop(0)]
        server.sent += len(body)
        self.wfile.write(body)
        threading.Event().wait(server.stall)

    def log_message(self, *arguments: object) -> None:
        """Silence."""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def content(server) -> bytes:
    """What the server has as /a.pth."""
    server.files["/a.pth"] = checkpoint()
    return server.files["/a.pth"]


def failure(url: str, **options) -> str:
    """The message of the error, which must be one line that names the address."""
    with pytest.raises(DownloadError) as error:
        download(url, **options)
    message = str(error.value)
    assert "\n" not in message
    assert url in message
    return message


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    def follow(old: str, new: str) -> object:
        return module._Redirects().redirect_request(Request(old), io.BytesIO(), 302, "Found", {}, new)

    with pytest.raises(module._Refused, match="from https to http, which is not followed"):
        follow("https://localhost/a.pth", "http://localhost/a.pth")
    assert follow("http://localhost/a.pth", "https://localhost/a.pth").full_url == "https://localhost/a.pth"


def test_endless_redirect(server, tmp_path):
    assert "302" in failure(f"{server.url}{'/moved' * 50}/a.pth", directory=tmp_path)


# Broken connections


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_dropped_connection_is_resumed_in_the_same_call(server, content, tmp_path, validator):
    server.validator = validator
    server.drops = [100_000, 50_000]
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert server.sent == len(content)
    assert left(tmp_path) == ["a.pth"]


def test_resumed_in_the_next_call(server, content, tmp_path):
    server.drops = [100_000]
    message = failure(f"{server.url}/a.pth", directory=tmp_path, retries=0)
    assert f"the connection ended after 100000 of {len(content)} bytes (tries: 1)" in message
    assert f"the 100000 bytes in {tmp_path / 'a.pth.partial'} are kept" in message
    assert f"put it at {tmp_path / 'a.pth'}" in message
    assert (tmp_path / "a.pth.partial").read_bytes() == content[:100_000]
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content
    assert server.requests[1:] == [("/a.pth", "bytes=100000-")]


def test_resumed_through_a_redirect(server, content, tmp_path):
    server.drops = [100_000]
    download(f"{server.url}/moved/a.pth", directory=tmp_path)
    assert server.requests[-1] == ("/a.pth", "bytes=100000-")
    assert server.sent == len(content)


@pytest.mark.parametrize("validator", ["", "weak"])
def test_not_resumed_where_versions_cannot_be_told_apart(server, content, tmp_path, validator):
    server.validator = validator
    server.drops = [100_000]
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content
    assert [wanted for _, wanted in server.requests] == [None, None]


def test_error_does_not_promise_what_cannot_be_resumed(server, content, tmp_path):
    server.validator = ""
    server.drops = [100_000]
    assert "kept" not in failure(f"{server.url}/a.pth", directory=tmp_path, retries=0)


def test_server_that_ignores_ranges(server, content, tmp_path):
    server.ranges = False
    server.drops = [100_000]
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content
    assert [wanted for _, wanted in server.requests] == [None, "bytes=100000-"]


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("size", ["longer", "shorter than what has come"])
def test_changed_file_is_not_spliced(server, content, tmp_path, if_range, size):
    server.if_range = if_range
    server.drops = [100_000]
    failure(f"{server.url}/a.pth", directory=tmp_path, retries=0)
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(200_000 if size == "longer" else 1000)}, buffer)
    server.files["/a.pth"] = buffer.getvalue()
    assert download(f"{server.url}/a.pth", directory=tmp_path, retries=0).read_bytes() == server.files["/a.pth"]


def test_everything_had_come_but_the_name(server, content, tmp_path, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            download(f"{server.url}/a.pth", directory=tmp_path)
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content
    assert server.sent == len(content)
    assert left(tmp_path) == ["a.pth"]


def test_unknown_length(server, content, tmp_path):
    server.length = False
    assert download(f"{server.url}/a.pth", directory=tmp_path).read_bytes() == content


def test_gives_up_after_the_retries(server, content, tmp_path):
    server.drops = [1000] * 10
    assert "after 3000 of" in failure(f"{server.url}/a.pth", directory=tmp_path, retries=2)
    assert len(server.requests) == 3


def test_pauses_double(server, content, tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.failures = [500, 502, 503, 429]
    download(f"{server.url}/a.pth", directory=tmp_path)
    assert pauses == [0.01, 0.02, 0.04, 0.08]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refusal_is_final(server, content, tmp_path, code):
    server.failures = [code]
    message = failure(f"{server.url}/a.pth", directory=tmp_path)
    assert f"the server answered {code}" in message
    assert f"put it at {tmp_path / 'a.pth'}" in message
    assert len(server.requests) == 1
    assert not (tmp_path / "a.pth").exists()


def test_refusal_keeps_the_partial_file(server, content, tmp_path):
    server.drops = [100_000]
    failure(f"{server.url}/a.pth", directory=tmp_path, retries=0)
    server.failures = [403]
    failure(f"{server.url}/a.pth", directory=tmp_path)
    download(f"{server.url}/a.pth", directory=tmp_path)
    assert server.sent == len(content)


def test_unreachable(tmp_path, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # not listening
        port = free.getsockname()[1]
        message = failure(f"http://127.0.0.1:{port}/a.pth", directory=tmp_path)
    assert "refused" in message
    assert "(tries: 5); check the connection" in message
    assert f"put it at {tmp_path / 'a.pth'}" in message


def test_silent_server(tmp_path, server):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.pth"
        assert "timed out" in failure(url, directory=tmp_path, retries=1, timeout=0.05)


def test_what_came_before_the_silence_is_kept(server, content, tmp_path):
    server.drops, server.stall = [100_000], 0.4
    assert "timed out" in failure(f"{server.url}/a.pth", directory=tmp_path, retries=0, timeout=0.1)
    assert (tmp_path / "a.pth.partial").read_bytes() == content[:100_000]


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
