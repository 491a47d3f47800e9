"""Fixtures of the download tests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from support.download_server import Server, checkpoint
from vmamba.checkpoints.download import download


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(sys.modules[download.__module__], "BACKOFF", 0.01)
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
