"""ONNX Runtime for browsers: an npm package, downloaded by npm, checked, and the few files of it that a page needs."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import resources
from pathlib import Path

from vmamba.errors import DownloadError, MissingPackageError
from vmamba.files import atomic_write

PACKAGE = "onnxruntime-web@1.30.0"
#: SHA-512 of the package, as npm writes it.
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
#: Files of the package: its JavaScript, and the runtime compiled to WebAssembly with the JavaScript that loads it.
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
#: Of the same project's Python package; the one for npm comes without.
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")


def write_runtime(folder: Path) -> None:
    """Write `FILES` and `LICENCES` into a folder, unless they are there.

    Raises:
        MissingPackageError: If npm, or the Python package of ONNX Runtime, is not installed.
        DownloadError: If npm cannot get the package, or gets another one.
    """
    mark = folder / "package.txt"
    if (
        mark.is_file()
        and mark.read_text() == PACKAGE
        and all((folder / name).is_file() for name in (*FILES, *LICENCES))
    ):
        return
    npm = find_npm()
    with tempfile.TemporaryDirectory() as temporary:
        command = [npm, "pack", PACKAGE, "--silent", "--prefer-offline", "--pack-destination", temporary]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=temporary)
        package = next(Path(temporary).glob("*.tgz"), None)
        if done.returncode or package is None:
            reason = " ".join(done.stderr.split())[:200] or f"status {done.returncode}"
            raise DownloadError(f"npm cannot get {PACKAGE}: {reason}; check the network and 'npm config get registry'")
        write_files(package, folder)
    for name in LICENCES:
        _write(folder / name, resources.files("onnxruntime").joinpath(name).read_bytes())
    _write(mark, PACKAGE.encode())


def write_files(package: Path, folder: Path) -> None:
    """Write `FILES` of the package, an npm archive, into a folder.

    Raises:
        DownloadError: If the archive is another one than ours.
    """
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if digest != INTEGRITY:
        raise DownloadError(f"{package.name} of npm's registry is not the {PACKAGE} that this version was tested with")
    with tarfile.open(package) as archive:
        for name in FILES:
            content = archive.extractfile(f"package/dist/{name}")
            assert content is not None
            _write(folder / name, content.read())


def find_npm() -> str:
    """The npm of the system, or the one that the extra ``explorer`` installs beside Python.

    Raises:
        MissingPackageError: If there is neither.
    """
    npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if npm is None:
        raise MissingPackageError("npm", "explorer")
    return npm


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
