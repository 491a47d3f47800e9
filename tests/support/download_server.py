"""A server on the loopback interface that behaves as badly as the real ones do."""

from __future__ import annotations

import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from vmamba.checkpoints.download import download
from vmamba.errors import DownloadError


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
