"""A page with a model, a server for it, and what runs its JavaScript."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vmamba
from support.explorer import Site
from vmamba.errors import DownloadError, MissingPackageError
from vmamba.explorer import Exhibit, write_site
from vmamba.explorer.runtime import write_runtime

SMALL = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_classes": 3, "d_state": 2}


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ONNX Runtime for browsers."""
    folder = tmp_path_factory.mktemp("runtime")
    try:
        write_runtime(folder)
    except (MissingPackageError, DownloadError) as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="session")
def site(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A page with a small model of two states."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(runtime, folder / "onnxruntime")
    rng = np.random.default_rng(0)
    pictures = []
    for i, size in enumerate([(90, 61), (48, 48)]):
        pixels = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        pictures.append(folder.parent / f"picture_{i}.png")
        pixels.save(pictures[-1])
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", **SMALL).eval()
    nn.init.normal_(model.get_classifier().weight)
    write_site(folder, [Exhibit("Small", model, pictures, 48)])
    return Site(folder, model, pictures)


@pytest.fixture
def javascript() -> Callable[..., Any]:
    """Call a function of ``functions.mjs`` with arguments that JSON can hold; returns its result."""
    node = shutil.which("node") or shutil.which("node", path=str(Path(sys.executable).parent))
    if node is None:
        pytest.skip("node is not installed; pip install 'vmamba[explorer]' brings it")
    script = Path(__file__).with_name("functions.mjs")

    def call(name: str, *arguments: object) -> Any:
        request = json.dumps([name, *arguments])
        done = subprocess.run([node, script], input=request, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture
def server(site: Site) -> Iterator[str]:
    """The page's address on this machine, served as ``python -m http.server`` does."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    serve = functools.partial(Handler, directory=str(site.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()
