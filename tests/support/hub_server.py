"""As much of the Hugging Face Hub as pushing and pulling small repositories needs, on the loopback interface."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name → file → content."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.server.repos.setdefault(name, {})
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.server.private.add(name)
            return self.json({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if self.path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if match := re.fullmatch("/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self.json({"files": files})
        if match := re.fullmatch("/api/models/(.+)/commit/main", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repos[match[1]][entry["value"]["path"]] = content
            sha = "0" * 40
            return self.json(
                {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{match[1]}/commit/{sha}"}
            )
        return self.json({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        match = re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if match is None:
            if (repo := re.fullmatch("/api/models/([^/]+/[^/]+)(/.*)?", self.path)) and repo[1] in self.server.repos:
                names = [{"rfilename": name} for name in self.server.repos[repo[1]]]
                return self.json({"id": repo[1], "sha": "0" * 40, "siblings": names})
            return self.json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = self.server.repos.get(match[1])
        if files is None:
            return self.json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if match[3] not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40}
            return self.json({"error": "Entry not found"}, 404, headers)
        content = files[match[3]]
        self.answer(content, 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def answer(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
