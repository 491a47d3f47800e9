"""Fetch a released checkpoint once, whole or not at all.

Beside the final file, while it is not complete: ``<name>.partial`` (the bytes so far), ``<name>.partial.version``
(which version of the remote file that is a part of) and ``<name>.lock`` (while a process downloads).
"""

from __future__ import annotations

import http.client
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch

from vmamba.checkpoints.integrity import damage
from vmamba.errors import DownloadError
from vmamba.files import lock
from vmamba.terminal import console

#: Seconds before the second try; doubled before each further one.
BACKOFF = 0.5

_CHUNK = 1 << 18
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}

# Called with the bytes that are there and the bytes of the whole file (None: the server does not say).
_Report = Callable[[int, "int | None"], None]


class _Interrupted(Exception):
    """The connection failed; another try may succeed."""


class _Refused(Exception):
    """The server's answer or its file is of no use, and another try would give the same."""


def download(
    url: str, *, directory: Path | None = None, progress: bool = True, retries: int = 4, timeout: float = 30
) -> Path:
    """Fetch the file at `url` unless it is there already.

    A download that was cut short is continued where it stopped, in this call or in a later one. A file gets its final
    name only when its size is what the server announced and its content is whole. Of several processes one downloads,
    the others wait and use its file.

    Args:
        url: http or https address; its last segment names the file.
        directory: Where to keep the file; the checkpoints folder of ``torch.hub`` by default.
        progress: Show a progress bar on stderr, if that is an interactive terminal.
        retries: How often to connect again after a broken or refused connection.
        timeout: Seconds without an answer after which a connection counts as broken.

    Returns:
        Path of the file. No connection is made when it exists.

    Raises:
        DownloadError: If the file cannot be downloaded, or the one that is there is damaged.
    """
    name = _file_name(url)
    directory = Path(torch.hub.get_dir()) / "checkpoints" if directory is None else directory
    target = directory / name
    partial = target.with_name(f"{name}.partial")
    by_hand = f"download it by hand and put it at {target}"
    try:
        if not target.exists():
            directory.mkdir(parents=True, exist_ok=True)
            with _progress_bar(name, progress) as report, lock(target.with_name(f"{name}.lock"), "", timeout=-1):
                if not target.exists():  # another process may have downloaded it in the meantime
                    _fetch(url, partial, report, retries, timeout)
                    _install(partial, target)
        elif reason := damage(target, target.suffix):
            raise DownloadError(f"{target} is damaged: {reason}; remove it to download it again from {url}")
    except _Interrupted as error:
        raise DownloadError(
            f"cannot download {url}: {error} (tries: {retries + 1}); check the connection and run this again"
            f"{_kept(partial)}, or {by_hand}"
        ) from error
    except _Refused as error:
        raise DownloadError(f"cannot download {url}: {error}; check the address, or {by_hand}") from error
    except OSError as error:  # those of the network have become _Interrupted
        raise DownloadError(
            f"cannot download {url}: {_one_line(error)} in {directory}; make room or choose another folder, then run "
            f"this again{_kept(partial)}"
        ) from error
    return target


def _file_name(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DownloadError(f"cannot download {url}: {error}; check the address") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DownloadError(f"cannot download {url}: not an http or https address; a local file needs no download")
    name = unquote(parts.path).rpartition("/")[2]
    if not name.strip(". ") or re.search(r'[\x00-\x1f\\:*?"<>|]', name):
        raise DownloadError(f"cannot download {url}: its last segment is not a file name; check the address")
    return name


def _fetch(url: str, partial: Path, report: _Report, retries: int, timeout: float) -> None:
    """Complete `partial`, over as many connections as it takes."""
    for pause in [BACKOFF * 2**i for i in range(retries)]:
        try:
            return _receive(url, partial, report, timeout)
        except _Interrupted:
            time.sleep(pause)
    return _receive(url, partial, report, timeout)


def _receive(url: str, partial: Path, report: _Report, timeout: float) -> None:
    """Append to `partial` what one connection gives; return when the file is complete."""
    start, version = _resume_point(partial)
    wanted = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    with _connect(Request(url, headers={"User-Agent": "vmamba", **wanted}), timeout) as response:
        first, total = _extent(response)
        if response.status == 416 and start and start == total:
            return  # nothing is missing
        if response.status == 206 and 0 < start == first and _version(response.headers) in ("", version):
            mode = "ab"
        elif response.status == 200:
            mode, start = "wb", 0
        elif start:  # not what was asked for: ask for the whole file
            partial.unlink()
            return _receive(url, partial, report, timeout)
        else:
            raise _Refused(f"the server answered {response.status} {response.reason}")
        with partial.open(mode) as file:
            if mode == "wb":  # only once the old bytes are gone
                _version_file(partial).write_text(_version(response.headers), encoding="utf-8")
            report(start, total)
            for chunk in _chunks(response):
                file.write(chunk)
                report(file.tell(), total)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
    if total is not None and size != total:
        raise _Interrupted(f"the connection ended after {size} of {total} bytes")


def _resume_point(partial: Path) -> tuple[int, str]:
    """Bytes that can be kept, and the version of the remote file that they belong to."""
    try:
        size, version = partial.stat().st_size, _version_file(partial).read_text(encoding="utf-8")
    except OSError:
        return 0, ""
    return (size, version) if version else (0, "")


def _version_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.version")


def _version(headers: Message) -> str:
    """Validator of this version of the file, for ``If-Range``; empty if the server gives none."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")  # a weak ETag is not allowed there


class _Redirects(HTTPRedirectHandler):
    """Follow within http or https, or to https: never to files, or out of an encrypted connection."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in (old, "https"):
            fp.close()
            raise _Refused(f"it redirects from {old} to {new}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _connect(request: Request, timeout: float) -> http.client.HTTPResponse:
    """The server's answer with status 2xx or 416."""
    try:
        response: http.client.HTTPResponse = build_opener(_Redirects).open(request, timeout=timeout)
    except HTTPError as error:
        if error.code == 416:
            return cast(http.client.HTTPResponse, error)  # it is a response too
        error.close()
        kind = _Interrupted if error.code in _WORTH_ANOTHER_TRY else _Refused
        raise kind(f"the server answered {error.code} {_one_line(error.reason)}") from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise _Refused(_one_line(error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_one_line(getattr(error, "reason", error))) from error
    return response


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_one_line(error)) from error


def _extent(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """Offset of the body in the remote file and size of that file, in bytes; None: not known."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", response.headers.get("Content-Range", "").strip())
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total else None


def _install(partial: Path, target: Path) -> None:
    """Give the complete file its name, or remove it if it is damaged."""
    reason = damage(partial, target.suffix, every_byte=True)
    if reason:
        partial.unlink()
        _version_file(partial).unlink(missing_ok=True)
        raise _Refused(f"what came is damaged and was removed: {reason}")
    os.replace(partial, target)
    _version_file(partial).unlink(missing_ok=True)


@contextmanager
def _progress_bar(name: str, wanted: bool) -> Iterator[_Report]:
    # Only here: models are made, and timed, where rich is not installed.
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    screen = console(stderr=True)
    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    show = wanted and screen.is_interactive and screen.file.isatty()  # FORCE_COLOR alone means interactive to rich
    with Progress(*columns, console=screen, disable=not show) as bar:
        task = bar.add_task(name, total=None)

        def report(size: int, total: int | None) -> None:
            bar.update(task, completed=size, total=total)

        yield report


def _kept(partial: Path) -> str:
    size, _ = _resume_point(partial)
    return f" (the {size} bytes in {partial} are kept and will be continued)" if size else ""


def _one_line(error: object) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
