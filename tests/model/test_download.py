"""Downloads from a server on loopback that misbehaves in every way that servers do."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vmamba.model import download as module
from vmamba.model.download import DownloadError, download


class Server:
    """Serves one file; the attributes say how."""

    def __init__(self, content: bytes) -> None:
        self.content, self.etag = content, '"1"'
        self.ranges = True  # honour Range
        self.drops: list[int] = []  # per request, after how many bytes of the body the connection ends
        self.status = 200
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.requests.append((self.path, wanted))
                if self.path.startswith("/moved/"):
                    self.send_response(302)
                    self.send_header("Location", self.path.removeprefix("/moved"))
                    self.end_headers()
                    return
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = 0
                if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(server.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(server.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = server.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    total = len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", server.etag)
                self.end_headers()
                self.wfile.write(body[: server.drops.pop(0)] if server.drops else body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def url(self, path: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self.http.server_port}/{path}"

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> bytes:
    torch.save({"model": {"weight": torch.arange(5000.0)}}, tmp_path / "made.pth")
    return (tmp_path / "made.pth").read_bytes()


@pytest.fixture
def server(checkpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    server = Server(checkpoint)
    yield server
    server.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fails(url: str, cache: Path, message: str, **options: int) -> None:
    with pytest.raises(DownloadError, match=message) as caught:
        download(url, directory=cache, **options)
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


def test_once_then_from_the_cache(server: Server, cache: Path) -> None:
    path = download(server.url(), directory=cache)
    assert path == cache / "weights.pth"
    assert path.read_bytes() == server.content
    assert download(server.url(), directory=cache) == path
    assert len(server.requests) == 1
    assert [p.name for p in cache.iterdir()] == ["weights.pth"]


def test_default_place_is_the_hub_cache(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert download(server.url("a%20b.pth")) == tmp_path / "hub" / "checkpoints" / "a b.pth"


def test_redirects_are_followed(server: Server, cache: Path) -> None:
    assert download(server.url("moved/weights.pth"), directory=cache).read_bytes() == server.content


def test_a_broken_connection_is_continued_with_the_rest_alone(server: Server, cache: Path) -> None:
    server.drops = [1000, 5000]
    assert download(server.url(), directory=cache).read_bytes() == server.content
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000-", "bytes=6000-"]


def test_a_later_call_continues(server: Server, cache: Path) -> None:
    server.drops = [1000]
    fails(
        server.url(),
        cache,
        r"the connection ended after 1000 of \d+ bytes \(1 tries\).*1000 bytes in .* are kept",
        retries=0,
    )
    assert not (cache / "weights.pth").exists()
    assert download(server.url(), directory=cache).read_bytes() == server.content
    assert server.requests[-1][1] == "bytes=1000-"


def test_a_file_that_changed_meanwhile_is_not_spliced(server: Server, cache: Path, tmp_path: Path) -> None:
    server.drops = [1000]
    fails(server.url(), cache, "the connection ended", retries=0)
    torch.save({"model": {"other": torch.ones(4000)}}, tmp_path / "other.pth")
    server.content, server.etag = (tmp_path / "other.pth").read_bytes(), '"2"'
    assert download(server.url(), directory=cache).read_bytes() == server.content


def test_a_server_without_ranges_starts_over(server: Server, cache: Path) -> None:
    server.ranges, server.drops = False, [1000]
    assert download(server.url(), directory=cache).read_bytes() == server.content


def test_nothing_left_to_fetch(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last byte and the renaming."""
    server.drops = [len(server.content) - 1]
    fails(server.url(), cache, "the connection ended", retries=0)
    with (cache / "weights.pth.partial").open("ab") as file:
        file.write(server.content[-1:])
    assert download(server.url(), directory=cache).read_bytes() == server.content


def test_damaged_content_is_removed(server: Server, cache: Path) -> None:
    whole = server.content
    for damaged, what in (
        (whole[:-1000], "not a zip file"),
        (whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:], "checksum|CRC"),
        (b"<html>sign in</html>", "not a PyTorch checkpoint, it begins with b'<h'"),
    ):
        server.content = damaged
        fails(server.url(), cache, rf"what came is damaged and was removed: .*({what})")
        assert [p.name for p in cache.iterdir()] == ["weights.pth.lock"]
    server.content = safetensors.torch.save({"a": torch.ones(10)})[:-1]
    fails(server.url("weights.safetensors"), cache, "what came is damaged and was removed")


def test_a_damaged_file_in_the_cache_is_named(server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / "weights.pth").write_bytes(server.content[:-1000])
    fails(server.url(), cache, r"weights\.pth is damaged: .*; remove it to download it again")


def test_refusals(server: Server, cache: Path) -> None:
    server.status = 404
    fails(
        server.url(),
        cache,
        "the server answered 404 Not Found; check the address, or download it by hand and put it at",
    )
    assert len(server.requests) == 1
    server.status = 503
    fails(
        server.url(), cache, r"the server answered 503 Service Unavailable \(3 tries\); check the connection", retries=2
    )
    assert len(server.requests) == 4


def test_no_server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fails(f"http://127.0.0.1:{port}/weights.pth", cache, "Connection refused .* or download it by hand and put it at")


def test_full_disk_keeps_what_came(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        fails(server.url(), cache, "No space left on device in .*; make room or choose another folder.* are kept")
    assert download(server.url(), directory=cache).read_bytes() == server.content


def test_several_at_once(server: Server, cache: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(download(server.url(), directory=cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.read_bytes() for p in paths] == [server.content] * 4
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["ftp://host/a.pth", "weights.pth", "http://127.0.0.1/", "http://[/a.pth"])
def test_addresses_that_are_none(url: str, cache: Path) -> None:
    fails(url, cache, "cannot download .*(not an http or https address|not a file name|check the address)")
