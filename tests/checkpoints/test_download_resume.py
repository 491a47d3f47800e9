"""Downloads over connections that break, and servers that refuse."""

from __future__ import annotations

import io
import socket
import sys

import pytest
import torch

from support.download_server import failure, left
from vmamba.checkpoints.download import download

module = sys.modules[download.__module__]


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
