"""The C++ examples: built as their first lines say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build an example in a folder; the program. Skips the test where there is no compiler or CMake."""
    if shutil.which("g++") is None or shutil.which("cmake") is None:
        pytest.skip("the C++ examples need g++ and cmake")
    for command in (
        ["cmake", "-S", str(source), "-B", str(folder / "build"), "-DCMAKE_BUILD_TYPE=Release", *options],
        ["cmake", "--build", str(folder / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "build" / "classify"


def write_ppm(path: Path, height: int, width: int) -> Image.Image:
    """Write a smooth random image as PPM."""
    patches = np.random.default_rng(0).integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
    image.save(path)
    return image
